"""schedule: a described cluster as the prices of a Program. plan/cost.py's seconds become the integers that the
scheduler (C++) decides with and the simulator runs with.
"""

from dataclasses import dataclass

from internevo_engine.plan.cluster import Cluster
from internevo_engine.plan.cost import COLLECTIVE_BASE_S, Calibration, matmul_s, memory_rate, memory_s, near_rate
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
        """A ring over the level. Over a far one all ranks of a node send at once."""
        passes = 2 if transfer == "all_reduce" else 1
        if level.link == "near":
            hop_us, rate = self.cluster.near.hop_us, near_rate(self.cluster)
        else:
            spanned = level.size * level.stride / self.cluster.ranks_per_node
            share = self.calibration.net_share(spanned)
            hop_us, rate = self.cluster.far.hop_us, self.cluster.far_gb_per_s_of_rank * 1e9 * share
        return _rate(COLLECTIVE_BASE_S + passes * (level.size - 1) * hop_us * 1e-6, rate)


def _rate(latency_s: float, bytes_per_s: float) -> Rate:
    return Rate(round(latency_s * 1e9), max(round(bytes_per_s / 1e6), 1))
