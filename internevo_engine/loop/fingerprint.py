"""loop: what a step did, in a few bytes, so that two runs can be compared bit by bit.

RUN/fingerprint.jsonl has a line a step: the bits of loss and gradient norm, and checksums of every bucket's summed
gradients and fp32 master weights. A wrong gradient reaches all weights, by the clip factor, but no other bucket's
gradients; so these are named first. `python -m internevo_engine show diff RUN_A RUN_B` names the first step and bucket
where two runs part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from internevo_engine.errors import DataError
from internevo_engine.loop.run_folder import read_jsonl

FILE = "fingerprint.jsonl"


@dataclass(frozen=True)
class Fingerprint:
    """One line."""

    step: int
    loss: str
    """Hexadecimal floating point: all its bits."""
    grad_norm: str
    gradients: tuple[str, ...]
    """Checksums before clipping, in the order of the plan's buckets."""
    weights: tuple[str, ...]
    """Checksums after the update."""


def fingerprint(
    step: int, loss: float, grad_norm: float, *, gradients: Sequence[int], weights: Sequence[int]
) -> Fingerprint:
    """The fingerprint of update number `step`, from checksums of every bucket."""
    return Fingerprint(step, loss.hex(), grad_norm.hex(), _hex(gradients), _hex(weights))


def _hex(checksums: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{value & 0xFFFFFFFF:08x}" for value in checksums)


def first_difference(run_a: Path, run_b: Path) -> str:
    """Where two runs part, or that they don't.

    Raises:
        DataError: a run has no fingerprints, or they are of different buckets.
    """
    a, b = _read(run_a), _read(run_b)
    for left, right in zip(a, b, strict=False):
        if left != right:
            return _describe(left, right)
    same = f"{min(len(a), len(b))} steps are equal, bit for bit"
    return same if len(a) == len(b) else f"{same}; then {run_a} has {len(a)} steps and {run_b} has {len(b)}"


def _describe(left: Fingerprint, right: Fingerprint) -> str:
    parts = [
        f"{name} {float.fromhex(x)!r} and {float.fromhex(y)!r}"
        for name, x, y in (("loss", left.loss, right.loss), ("grad_norm", left.grad_norm, right.grad_norm))
        if x != y
    ]
    if len(left.weights) != len(right.weights):
        raise DataError(
            f"the runs have {len(left.weights)} and {len(right.weights)} buckets: compare runs of one comm.bucket_mb"
        )
    gradients = _differing("gradients", left.gradients, right.gradients)
    parts += gradients or _differing("weights", left.weights, right.weights)
    return f"the runs part at step {left.step}: {'; '.join(parts)}"


def _differing(what: str, left: Sequence[str], right: Sequence[str]) -> list[str]:
    """['gradients of bucket 2 (0badcafe and 0badcaff), 1 in all'], or []."""
    numbers = [number for number, (x, y) in enumerate(zip(left, right, strict=True)) if x != y]
    return [f"{what} of bucket {n} ({left[n]} and {right[n]}), {len(numbers)} in all" for n in numbers[:1]]


def _read(run: Path) -> list[Fingerprint]:
    records = read_jsonl(run / FILE)
    if not records:
        raise DataError(f"{run / FILE} is missing or empty; name the folder of a run that has trained")
    return [
        Fingerprint(r["step"], r["loss"], r["grad_norm"], tuple(r["gradients"]), tuple(r["weights"])) for r in records
    ]
