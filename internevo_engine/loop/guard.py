"""loop: run.guard, the search for flipped bits. Around the steps that are due; what it finds ends the run with 10.

light  every run.guard_every steps, and before each checkpoint, ranks that hold copies of the same slices compare
       checksums of them (runtime/replicas.py)
full   so they do after every step; and what a rank received is compared with what was sent, and optimizer states at
       rest with what the last update left, before the update (runtime/audit.py)
"""

import torch

from internevo_engine.config.schema import Config
from internevo_engine.data.packing import MicroBatch
from internevo_engine.engine import Engine
from internevo_engine.errors import CorruptionError
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.replicas import Disagreement, compare, own_parameters, sums_of_copies


class Guard:
    """Watches the engine of one rank; every rank makes the same calls."""

    def __init__(self, config: Config, engine: Engine[MicroBatch], communicator: Communicator) -> None:
        self._engine, self._communicator = engine, communicator
        every = {"off": 0, "light": config.run.guard_every, "full": 1}[config.run.guard]
        self._rhythms = (every, config.checkpoint.every if every else 0)
        self._before: torch.Tensor | None = None

    def before(self, step: int) -> None:
        """Step number `step`, counted from 1, is about to begin."""
        is_due = any(every and step % every == 0 for every in self._rhythms)
        self._before = own_parameters(self._engine.state) if is_due else None

    def after(self, step: int) -> None:
        """It is done.

        Raises:
            CorruptionError: copies differ; on all ranks.
        """
        if self._before is None or self._communicator.world == 1:
            return
        plan = self._engine.plan
        found = compare(sums_of_copies(self._engine.state, plan, self._before), plan, self._communicator)
        if found:
            raise CorruptionError(f"step {step}: {describe(found[0], plan)}{_rest(found)}")


def describe(found: Disagreement, plan: Plan) -> str:
    """Who, and where."""
    params = [plan.params[index].name for index in plan.buckets[found.bucket].params]
    named = params[0] if len(params) == 1 else f"{params[0]} to {params[-1]}"
    where = f"the {found.what} of bucket {found.bucket} ({named})"
    ranks = " and ".join(map(str, found.ranks))
    if found.ranks == found.holders:
        return f"ranks {ranks} hold different bits of {where}; one of them is wrong, and two can't tell which"
    agree = ", ".join(str(rank) for rank in found.holders if rank not in found.ranks)
    return f"rank {ranks} holds other bits of {where} than ranks {agree}: its memory or link is faulty"


def _rest(found: list[Disagreement]) -> str:
    more = f"; {len(found) - 1} more" if len(found) > 1 else ""
    return f"{more}; start again from the newest checkpoint, without that machine"
