"""schedule: the cost table. What a call, a transfer and a pass over memory take, in integers.

Modelled from a device's published rates, or measured on the machine (measured rows win). Integers, so that ranks that
share a table make the same decisions; JSON, so that rank 0's table can serve all.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from internevo_engine.program import Level, Link
from internevo_engine.schedule.graph_spec import CallSpec

TransferKind = Literal["gather", "reduce"]


@dataclass(frozen=True)
class Rate:
    """latency_ns + bytes * 1000 // bytes_per_us nanoseconds."""

    latency_ns: int
    bytes_per_us: int
    """1 GB/s is 1000."""

    def ns(self, num_bytes: int) -> int:
        return self.latency_ns + num_bytes * 1000 // self.bytes_per_us


@dataclass(frozen=True)
class TransferRate:
    """A measured row: all-gather, or reduce-scatter and all-reduce, over groups of one size."""

    kind: TransferKind
    link: Link
    size: int
    """Ranks of a group."""
    rate: Rate
    """By the bytes that each rank sends."""


@dataclass(frozen=True)
class CallTime:
    """A measured row: one call of a region."""

    call: str
    ns: int


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
    transfers: tuple[TransferRate, ...] = ()
    calls: tuple[CallTime, ...] = ()

    def call_ns(self, call: CallSpec) -> int:
        """Measured, or the slower of its FLOPs and its bytes (the roofline)."""
        for row in self.calls:
            if row.call == call.name:
                return row.ns
        return max(self.memory.latency_ns + call.flops * 1000 // self.flops_per_us, self.memory.ns(call.bytes_moved))

    def transfer_rate(self, kind: TransferKind, level: Level) -> Rate:
        """Measured, or the link's: each of the level's `size - 1` peers costs the latency once."""
        for row in self.transfers:
            if (row.kind, row.link, row.size) == (kind, level.link, level.size):
                return row.rate
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
            transfers=tuple(TransferRate(**{**row, "rate": Rate(**row["rate"])}) for row in table["transfers"]),
            calls=tuple(CallTime(**row) for row in table["calls"]),
        )


# Dense 16-bit matrix FLOPs, memory, NVLink one way and one network card a GPU as the vendor publishes them (A100 80 GB
# and H100 in DGX systems), each at the share that training codes reach: 60 % of FLOPs, 80 % of bandwidth. The cpu row
# is a round figure for one core and gloo; a run there measures its own.
MODELLED: Mapping[str, CostTable] = {
    "cpu": CostTable(50_000, Rate(5_000, 10_000), near=Rate(60_000, 1_000), far=Rate(150_000, 100)),
    "a100": CostTable(187_000_000, Rate(5_000, 1_630_000), near=Rate(3_000, 240_000), far=Rate(8_000, 20_000)),
    "h100": CostTable(593_000_000, Rate(5_000, 2_680_000), near=Rate(3_000, 360_000), far=Rate(8_000, 40_000)),
}
