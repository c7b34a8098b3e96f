"""loop: what a step did, in a few bytes, so that two runs can be compared bit by bit.

RUN/fingerprint.jsonl has a line a step: the bits of loss and gradient norm, and a checksum of the fp32 master weights
of every bucket. `python -m internevo_engine show diff RUN_A RUN_B` names the first step and bucket where two runs part.
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
    buckets: tuple[str, ...]
    """Checksums after the update, in the order of the plan's buckets."""


def fingerprint(step: int, loss: float, grad_norm: float, checksums: Sequence[int]) -> Fingerprint:
    """The fingerprint of update number `step`."""
    return Fingerprint(step, loss.hex(), grad_norm.hex(), tuple(f"{value & 0xFFFFFFFF:08x}" for value in checksums))


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
    if len(left.buckets) != len(right.buckets):
        raise DataError(
            f"the runs have {len(left.buckets)} and {len(right.buckets)} buckets: compare runs of one comm.bucket_mb"
        )
    differing = [number for number, (x, y) in enumerate(zip(left.buckets, right.buckets, strict=True)) if x != y]
    if differing:
        number = differing[0]
        parts.append(f"bucket {number} ({left.buckets[number]} and {right.buckets[number]}), {len(differing)} in all")
    return f"the runs part at step {left.step}: {'; '.join(parts)}"


def _read(run: Path) -> list[Fingerprint]:
    records = read_jsonl(run / FILE)
    if not records:
        raise DataError(f"{run / FILE} is missing or empty; name the folder of a run that has trained")
    return [Fingerprint(r["step"], r["loss"], r["grad_norm"], tuple(r["buckets"])) for r in records]
