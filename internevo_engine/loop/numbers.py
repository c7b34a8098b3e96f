"""loop: bad steps, and which batches are left out for them. Between what resume.py loads and what train.py takes.

A step is bad where its loss or gradient norm is not finite or, with run.spike_sigma, far above those of the last good
steps. It updates nothing: the limits go to the device with the step. Then, by run.bad_step, its batch is left out
(skip), or all batches from the newest checkpoint to it, where the run goes on from that checkpoint (rewind). After
run.max_bad_steps at one place the run ends.

All ranks see equal totals, so all decide alike. `Numbers` is in every checkpoint, and what was left out in
RUN/skipped.jsonl too: a run that goes on leaves out the same batches.
"""

from collections.abc import Sequence
from math import fsum, sqrt

from pydantic import BaseModel, ConfigDict

from internevo_engine.config.schema import RunConfig
from internevo_engine.errors import NumbersError
from internevo_engine.runtime.limits import NO_LIMITS, Limits

FILE = "skipped.jsonl"


class Skip(BaseModel):
    """Batches that are left out: a line of RUN/skipped.jsonl. A batch is what all ranks take in one step."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    step: int
    """Updates before them."""
    first: int
    count: int
    micro_batches: tuple[int, int]
    """Numbers in the whole run, [begin, end), of those in the bad batch, which is the last of `count`."""
    why: str

    @property
    def text(self) -> str:
        last = self.first + self.count - 1
        batches = f"batch {last} is" if self.count == 1 else f"batches {self.first} to {last} are"
        return f"{batches} left out: {self.why}"


class Numbers(BaseModel):
    """What the next steps are judged by, and which batches they take."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    losses: tuple[float, ...] = ()
    """Of the last good steps."""
    grad_norms: tuple[float, ...] = ()
    skips: tuple[Skip, ...] = ()
    """In the order of their batches."""

    @property
    def num_skipped(self) -> int:
        return sum(skip.count for skip in self.skips)

    def batch(self, step: int) -> int:
        """Which batch comes after `step` updates."""
        batch = step
        for skip in self.skips:
            batch += skip.count if skip.first <= batch else 0
        return batch

    def limits(self, run: RunConfig) -> Limits:
        """None until a window is full of good steps."""
        if run.spike_sigma is None or len(self.losses) < run.spike_window:
            return NO_LIMITS
        windows = (values[-run.spike_window :] for values in (self.losses, self.grad_norms))
        return Limits(*(_far_above(window, run.spike_sigma) for window in windows))

    def after(self, loss: float, grad_norm: float, run: RunConfig) -> "Numbers":
        """With a good step more."""
        losses, grad_norms = (*self.losses, loss), (*self.grad_norms, grad_norm)
        window = {"losses": losses[-run.spike_window :], "grad_norms": grad_norms[-run.spike_window :]}
        return self.model_copy(update=window)

    def without(self, bad_batch: int, step: int, *, per_batch: int, why: str) -> "Numbers":
        """Leave out everything from the batch that comes after `step` updates to `bad_batch`.

        Args:
            per_batch: micro-batches of all ranks in a batch.
        """
        first = self.batch(step)
        micro_batches = (bad_batch * per_batch, (bad_batch + 1) * per_batch)
        skip = Skip(step=step, first=first, count=bad_batch - first + 1, micro_batches=micro_batches, why=why)
        return self.model_copy(update={"skips": (*self.skips, skip)})

    def check(self, run: RunConfig) -> None:
        """Raises NumbersError where the last batch that was left out is one too many."""
        last = self.skips[-1]
        here = [skip for skip in self.skips if skip.step == last.step]
        if len(here) >= run.max_bad_steps:
            raise NumbersError(
                f"after step {last.step}: {last.why}; {len(here)} bad steps without a good one in between "
                f"(run.max_bad_steps={run.max_bad_steps}; their batches are in {FILE} of the run folder); lower "
                "optim.lr, raise optim.warmup_ratio or lower optim.clip",
                complaint=last.why,
            )


def _far_above(values: Sequence[float], sigma: float) -> float:
    mean = fsum(values) / len(values)
    return mean + sigma * sqrt(fsum((value - mean) ** 2 for value in values) / len(values))
