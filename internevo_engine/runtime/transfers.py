"""runtime: the routes of transfers, as tables of rows; csrc/runtime/transfers.h carries them out.

The plan's mode and wire choose algorithms once, and what measure.py found chooses pieces for each level; the executor
hands the rows to C++ and never looks at the mode again.
`Transfers` is the same code for one process group, called from Python.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from internevo_engine.program import Level, Mode
from internevo_engine.schedule.costs import CostTable, Transfer, TransferTime

ANY_BYTES = 2**62
MOST_PIECES = 64
PIECES: Mapping[str, tuple[int, ...]] = {"gloo": (1, 4, 16, MOST_PIECES), "nccl": (1,)}
"""Numbers worth measuring. NCCL fills a link in both directions by itself."""


@dataclass(frozen=True)
class Route:
    """How one kind of transfer travels. The first row that fits counts."""

    backend: str
    """'gloo', 'nccl', ..."""
    transfer: Transfer
    up_to_bytes: int
    """Of the longer side: what a reduce-scatter takes, what an all-gather gives."""
    algorithm: Literal["backend", "ordered"]
    """The backend's own collective, which sums as it likes; or an all-to-all and the owner's sum in a fixed tree."""
    pieces: int
    """In flight together; fewer where they would not be even."""

    @property
    def row(self) -> tuple[tuple[str, str], int, int]:
        """As C++ reads it, which gets the rows of one backend."""
        return (self.transfer, self.algorithm), self.up_to_bytes, self.pieces


def routes(backend: str, mode: Mode, wire: torch.dtype, pieces: int = 1, *, audited: bool = False) -> tuple[Route, ...]:
    """The rows of a backend where nothing was measured. It adds in the wire's dtype, so bf16 is always 'ordered'; and
    only what is ordered travels in messages, which can be audited."""
    reduction = "ordered" if mode != "fast" or wire != torch.float32 or audited else "backend"
    table = (
        # gloo's own reduce-scatter sends as much as an all-reduce, and has no future for the executor to wait on
        Route("gloo", "reduce_scatter", ANY_BYTES, "ordered", pieces),
        Route("gloo", "all_reduce", ANY_BYTES, reduction, pieces),
        Route("gloo", "all_gather", ANY_BYTES, "backend", pieces),
        Route("nccl", "reduce_scatter", ANY_BYTES, reduction, pieces),
        Route("nccl", "all_reduce", ANY_BYTES, reduction, pieces),
        Route("nccl", "all_gather", ANY_BYTES, "backend", pieces),
    )
    return tuple(route for route in table if route.backend == backend)


def cut_as_measured(table: Sequence[Route], costs: CostTable, level: Level) -> tuple[Route, ...]:
    """The routes of a level: the pieces that were fastest there, for sizes near each one that was measured.

    Algorithms stay, because they decide the bits of a sum; pieces don't, so measurement may choose them.
    """
    return tuple(row for route in table for row in _cut(route, costs.best_cuts(route.transfer, level)))


def _cut(route: Route, best: Sequence[TransferTime]) -> Iterator[Route]:
    if not best:
        yield route
        return
    middles = [isqrt(smaller.bytes * larger.bytes) for smaller, larger in pairwise(best)]
    for row, end in zip(best, [*middles, ANY_BYTES], strict=True):
        yield replace(route, up_to_bytes=end, pieces=row.pieces)


class Transfers:
    """Transfers in the process group of this name; flat, contiguous tensors. Mistakes raise RuntimeError."""

    def __init__(self, group_name: str, routes: Sequence[Route], wire: torch.dtype = torch.float32) -> None:
        self._native = torch.classes.internevo.Transfers(group_name, [route.row for route in routes], wire)

    def reduce_scatter(self, out: Tensor, whole: Tensor) -> None:
        """whole [size * n] fp32 -> out [n] fp32: the sum of this member's slice."""
        self._native.reduce_scatter(out, whole)

    def all_gather(self, out: Tensor, own: Tensor) -> None:
        """own [n] -> out [size * n]; `own` may be this member's slice of `out`."""
        self._native.all_gather(out, own)

    def all_reduce(self, out: Tensor, own: Tensor) -> None:
        """own [n] fp32 -> out [n] fp32, equal bits on all members."""
        self._native.all_reduce(out, own)
