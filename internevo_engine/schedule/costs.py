"""schedule: the cost table. What a call, a transfer and a pass over memory take, in integers.

Modelled from a device's published rates, or measured on the machine (measured rows win). Integers, so that ranks that
share a table make the same decisions; JSON, so that rank 0's table can serve all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from internevo_engine.program import Level, Link
from internevo_engine.schedule.graph_spec import CallSpec

Transfer = Literal["reduce_scatter", "all_gather", "all_reduce"]
WORTH_CUTTING = 0.9
"""More pieces are taken only where they need at most this share of the time: they cost the processor, and noise must
not choose."""


@dataclass(frozen=True)
class Rate:
    """latency_ns + bytes * 1000 // bytes_per_us nanoseconds."""

    latency_ns: int
    bytes_per_us: int
    """1 GB/s is 1000."""

    def ns(self, num_bytes: int) -> int:
        return self.latency_ns + num_bytes * 1000 // self.bytes_per_us


class Prices(Protocol):
    """What scheduling asks of a cost table, whether measured or modelled for a described cluster."""

    @property
    def memory(self) -> Rate:
        """A pass over local memory, its launch included."""
        ...

    def call_ns(self, call: CallSpec) -> int: ...

    def transfer_rate(self, transfer: Transfer, level: Level) -> Rate:
        """By bytes that each rank sends."""
        ...


@dataclass(frozen=True)
class TransferTime:
    """A measured row: one transfer over groups of one size, cut into pieces that are in flight together."""

    transfer: Transfer
    link: Link
    size: int
    """Ranks of a group."""
    bytes: int
    """Of the longer side: what a reduce-scatter takes, what an all-gather gives."""
    pieces: int
    ns: int

    @property
    def bytes_sent(self) -> int:
        """By each rank."""
        once = self.bytes - self.bytes // self.size
        return 2 * once if self.transfer == "all_reduce" else once


@dataclass(frozen=True)
class CostTable:
    """Prices of a step on one kind of machine."""

    flops_per_us: int
    """1 TFLOP/s is 1e6."""
    memory: Rate
    """A pass over local memory, its launch included."""
    near: Rate
    """What one rank sends to ranks of its host."""
    far: Rate
    """What one rank sends to other hosts while its neighbours do the same."""
    transfers: tuple[TransferTime, ...] = ()
    """Measured; every transfer and level in two sizes or more."""

    def call_ns(self, call: CallSpec) -> int:
        """The slower of its FLOPs and its bytes (the roofline)."""
        return max(self.memory.latency_ns + call.flops * 1000 // self.flops_per_us, self.memory.ns(call.bytes_moved))

    def best_cuts(self, transfer: Transfer, level: Level) -> tuple[TransferTime, ...]:
        """For each measured size, rising, the number of pieces to take; empty where nothing was measured."""
        where = (transfer, level.link, level.size)
        rows = [row for row in self.transfers if (row.transfer, row.link, row.size) == where]
        sizes = sorted({row.bytes for row in rows})
        return tuple(_best_cut([row for row in rows if row.bytes == size]) for size in sizes)

    def transfer_rate(self, transfer: Transfer, level: Level) -> Rate:
        """By bytes sent: measured, or the link's, where each of the level's `size - 1` peers costs the latency once."""
        rows = self.best_cuts(transfer, level)
        if rows:
            return _line_through(rows[0], rows[-1])
        link = {"near": self.near, "far": self.far}[level.link]
        return Rate(link.latency_ns * (level.size - 1), link.bytes_per_us)

    def json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "CostTable":
        """Read what `json` wrote."""
        table: dict[str, Any] = json.loads(text)
        return CostTable(
            flops_per_us=table["flops_per_us"],
            memory=Rate(**table["memory"]),
            near=Rate(**table["near"]),
            far=Rate(**table["far"]),
            transfers=tuple(TransferTime(**row) for row in table["transfers"]),
        )


def _best_cut(rows: Sequence[TransferTime]) -> TransferTime:
    fastest = min(row.ns for row in rows)
    return min((row for row in rows if row.ns * WORTH_CUTTING <= fastest), key=lambda row: row.pieces)


def _line_through(small: TransferTime, large: TransferTime) -> Rate:
    sent, ns = large.bytes_sent - small.bytes_sent, max(large.ns - small.ns, 1)
    bytes_per_us = max(sent * 1000 // ns, 1)
    return Rate(max(small.ns - small.bytes_sent * 1000 // bytes_per_us, 0), bytes_per_us)


# Dense 16-bit matrix FLOPs, memory, NVLink one way and one network card a GPU as the vendor publishes them (A100 80 GB
# and H100 in DGX systems), each at the share that training codes reach: 60 % of FLOPs, 80 % of bandwidth. The cpu row
# is a round figure for one core and gloo; a run there measures its own.
MODELLED: Mapping[str, CostTable] = {
    "cpu": CostTable(50_000, Rate(5_000, 10_000), near=Rate(60_000, 1_000), far=Rate(150_000, 100)),
    "a100": CostTable(187_000_000, Rate(5_000, 1_630_000), near=Rate(3_000, 240_000), far=Rate(8_000, 20_000)),
    "h100": CostTable(593_000_000, Rate(5_000, 2_680_000), near=Rate(3_000, 360_000), far=Rate(8_000, 40_000)),
}
