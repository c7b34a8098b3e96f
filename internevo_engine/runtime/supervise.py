"""runtime: a run on this host that is not lost: one attempt after the other, watched by a parent without torch.

An attempt that failed (attempt.py) is followed by another one, from the newest checkpoint, where that may help. What is
known of the failure is in RUN/failure.json (failure.py).
"""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from uuid import uuid4

from internevo_engine.errors import INTERNAL, HangError, LostRankError
from internevo_engine.runtime.attempt import ENDED_WELL, Attempt
from internevo_engine.runtime.failure import write_failure
from internevo_engine.runtime.nursery import Nursery

RESTARTED = (LostRankError.exit_code, HangError.exit_code, INTERNAL)
"""What may not happen again. All else would: config, data, checkpoint, storage, numbers, corruption, memory."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def supervise(command: Sequence[str], nproc: int, *, restarts: int, newest: Callable[[], int], run: Path) -> int:
    """Run `nproc` ranks, and again after a failure that another attempt may mend.

    Args:
        command: with `--nursery FD` it becomes the nursery in which the ranks are born.
        restarts: attempts after the first one; every new checkpoint gives all of them back.
        newest: the step of the newest published checkpoint, 0 where there is none.
        run: the run folder, for failure.json.

    Returns:
        The exit code: of the attempt that ended well, or of the failure that was one too many.
    """
    job, budget = uuid4().hex, Budget(restarts, newest)
    with _signals_passed_on() as signals, Nursery(command) as nursery:
        for number in count():
            with Attempt(nursery, nproc, number, job) as attempt:
                signals.follow(attempt)
                end = attempt.wait()
                if end.code in ENDED_WELL:
                    return end.code
                refusal = "it was asked to stop" if signals.last else budget.refusal(end.code)
                then = refusal and f"not started again: {refusal}"
                then = then or f"starting again from step {budget.published}; {budget.left} restarts left after that"
                write_failure(run, attempt, end, then)
            print(f"error: attempt {number + 1} ended: {end.cause}; {then}", file=sys.stderr, flush=True)
            if refusal:
                return end.code
    raise AssertionError("count() does not end")


class Budget:
    """How often a run is still started again."""

    def __init__(self, restarts: int, newest: Callable[[], int]) -> None:
        self._restarts, self._newest = restarts, newest
        self.left, self.published = restarts, newest()

    def refusal(self, code: int) -> str:
        """Why a failure with this code is not followed by another attempt; '': it is, and one is spent."""
        if code not in RESTARTED:
            return f"code {code} would come again"
        if (published := self._newest()) > self.published:
            self.left, self.published = self._restarts, published
        if self.left == 0:
            return f"no new checkpoint after launch.restarts={self._restarts} restarts"
        self.left -= 1
        return ""


class _Signals:
    """Passed on to the attempt under way; one that comes while it is being started, right after that."""

    def __init__(self) -> None:
        self.last = 0
        self._attempt: Attempt | None = None

    def follow(self, attempt: Attempt) -> None:
        self._attempt = attempt
        if self.last:
            attempt.send(self.last)

    def pass_on(self, number: int, _frame: object) -> None:
        self.last = number
        if self._attempt is not None:
            self._attempt.send(number)


@contextmanager
def _signals_passed_on() -> Iterator[_Signals]:
    signals = _Signals()
    kept = {number: signal.signal(number, signals.pass_on) for number in FORWARDED}
    try:
        yield signals
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
