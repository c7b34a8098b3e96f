"""schedule: a described cluster as the prices of a Program. plan/cost.py's seconds become the integers that the
scheduler (C++) decides with and the simulator runs with.
"""

from dataclasses import dataclass

from internevo_engine.plan.cluster import Cluster
from internevo_engine.plan.cost import Calibration, level_rate, matmul_s, memory_rate, memory_s
from internevo_engine.program import Level
from internevo_engine.schedule.costs import Rate, Transfer
from internevo_engine.schedule.graph_spec import CallSpec

FUSED_SHARE = 0.35
"""Of the bytes that a region's ops move one by one, what is left when a compiler fuses them and matrix products keep
their operands in cache: for a layer of InternLM-7B 48 bytes a token and unit of width."""
LAUNCH_NS = 5_000
"""Of a kernel, from the host."""


@dataclass(frozen=True)
class ClusterCosts:
    """Prices of one calibration; see schedule/costs.py, `Prices`."""

    cluster: Cluster
    calibration: Calibration
    micro_batch_tokens: int
    bucket_bytes: float
    """Of fp32 gradients, in the mean."""
    world: int

    @property
    def memory(self) -> Rate:
        return _rate(LAUNCH_NS * 1e-9, memory_rate(self.cluster))

    def call_ns(self, call: CallSpec) -> int:
        """Matrix products, then what is bound by memory; as long as the slowest rank takes."""
        products = matmul_s(call.flops, self.micro_batch_tokens, self.cluster, self.calibration)
        seconds = products + memory_s(FUSED_SHARE * call.bytes_moved, self.cluster)
        return LAUNCH_NS + round(seconds * self.calibration.waiting(self.world) * 1e9)

    def transfer_rate(self, transfer: Transfer, level: Level) -> Rate:
        """For a slice of a usual bucket, which the levels before have cut."""
        passes = 2 if transfer == "all_reduce" else 1
        num_bytes = self.bucket_bytes / level.stride
        return _rate(*level_rate(level, passes, num_bytes, self.cluster, self.calibration))


def _rate(latency_s: float, bytes_per_s: float) -> Rate:
    return Rate(round(latency_s * 1e9), max(round(bytes_per_s / 1e6), 1))
