"""runtime: ranks compare what they are about to do, through the store, before any data moves."""

from hashlib import sha256

from internevo_engine.errors import RanksDisagreeError
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.schedule.step_program import first_difference


def agree_on(what: str, text: str, communicator: Communicator) -> None:
    """Compare a plan or a Program, as text.

    Raises:
        RanksDisagreeError: this rank's is not that of all others; with the first line that differs.
    """
    digests = communicator.agree(f"{what} digest", sha256(text.encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    texts = communicator.agree(f"{what} text", text)
    other = next(rank for rank, found in enumerate(digests) if found != digests[communicator.rank])
    raise RanksDisagreeError(
        f"rank {communicator.rank} would run another {what} than rank {other}: "
        f"{first_difference(text, texts[other])}; start all ranks with the same config, code and torch"
    )
