"""plan: what computing and sending take on a described cluster, in seconds. Hands prices to schedule/cluster_costs.py,
which prices a Program with them, and to plan/closed_form.py, which prices published runs.

Few physical parameters are fitted (`Calibration`, by plan/calibrate.py); all others are constants with their source.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from internevo_engine.plan.cluster import Cluster

MEMORY_EFFICIENCY = 0.8
"""Share of the published memory bandwidth that streaming kernels reach (STREAM-like copies on A100 and H100)."""
NEAR_EFFICIENCY = 0.78
"""Share of NVLink's rate that nccl-tests report: 234.9 of 300 GB/s for an all-reduce of 16 GiB on 8 A100."""
CONTENTION = 0.04
"""By how much a collective under way slows computing: it takes a few of the processors and of the memory bandwidth."""
COLLECTIVE_BASE_S = 20e-6
"""Launch and set-up of a collective: NCCL's tuner has 8.4 us, a launch from the host about as much again."""

Shape = Literal["linear", "root", "log"]


@dataclass(frozen=True)
class Calibration:
    """What published runs fix. The defaults are where a fit starts, and what it keeps of what its rows don't tell."""

    gemm_efficiency: float = 0.73
    """Share of peak FLOPs that matrix products of many tokens reach."""
    half_tokens: float = 220.0
    """Tokens of a micro-batch at which they reach half of it."""
    net_efficiency: float = 0.98
    """Share of the network cards' rate that a ring over two nodes reaches."""
    congestion: float = 0.6
    """By how much 128 nodes lengthen a far transfer."""
    jitter: float = 0.015
    """Deviation of one rank's computing time within a step, relative."""
    shape: Shape = "linear"
    """How congestion grows with the nodes that a group spans. Rows up to 1,024 GPUs don't tell."""

    def matmul_share(self, num_tokens: float, split: int = 1) -> float:
        """Of peak FLOPs, for a micro-batch of `num_tokens` whose matrices are split over `split` ranks."""
        return self.gemm_efficiency * num_tokens / (num_tokens + self.half_tokens * split)

    def net_share(self, nodes: float) -> float:
        """Of the network cards' rate, for a group that spans that many nodes."""
        return self.net_efficiency / (1 + self.congestion * _growth(nodes, self.shape))

    def waiting(self, ranks: int) -> float:
        """How many times as long as the average rank the slowest of them computes."""
        return 1 + self.jitter * expected_maximum(ranks)


def _growth(nodes: float, shape: Shape) -> float:
    """0 up to two nodes, 1 at 128."""
    if nodes <= 2:
        return 0.0
    return {
        "linear": (nodes - 2) / 126,
        "root": (math.sqrt(nodes) - math.sqrt(2)) / (math.sqrt(128) - math.sqrt(2)),
        "log": (math.log2(nodes) - 1) / 6,
    }[shape]


@cache
def expected_maximum(count: int) -> float:
    """Of `count` independent standard normals: the integral of x d(Phi^count), exact to 1e-4."""
    x = np.linspace(-8, 10, 20_001)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x]) ** count
    return float(np.sum((x[1:] + x[:-1]) / 2 * np.diff(below)))


AS_MEASURED = Calibration(
    gemm_efficiency=1, half_tokens=0, net_efficiency=1, congestion=0, jitter=0
)
"""For a cluster whose rates are what was reached."""


@dataclass(frozen=True)
class Group:
    """Ranks of one collective."""

    size: int
    per_node: int
    """Members in each of its nodes."""
    sharing: int = 1
    """Groups of a node that use its network cards at the same time."""

    @property
    def nodes(self) -> int:
        return self.size // self.per_node


def ring_s(num_bytes: float, passes: int, group: Group, cluster: Cluster, calibration: Calibration) -> float:
    """Seconds of a ring collective over a buffer of `num_bytes`: 2 passes for an all-reduce, else 1.

    Each pass moves (size - 1) / size of the buffer out of every rank; a ring leaves a node once, so its cards carry as
    much for each group that shares them.
    """
    if group.size == 1:
        return 0.0
    far_hops = group.nodes - 1 if group.nodes > 1 else 0
    hops = far_hops * cluster.far.hop_us + (group.size - 1 - far_hops) * cluster.near.hop_us
    moved = passes * (group.size - 1) / group.size * num_bytes
    seconds = moved / near_rate(cluster) if group.per_node > 1 else 0.0
    if group.nodes > 1:
        rate = cluster.far.gb_per_s * 1e9 * calibration.net_share(group.nodes)
        seconds = max(seconds, moved * group.sharing / rate)
    return COLLECTIVE_BASE_S + passes * hops * 1e-6 + seconds


def near_rate(cluster: Cluster) -> float:
    """Bytes a second that a rank sends to its node."""
    return cluster.near.gb_per_s * 1e9 * (1 if cluster.is_measured else NEAR_EFFICIENCY)


def memory_rate(cluster: Cluster) -> float:
    """Bytes a second that a rank's kernels read and write."""
    return cluster.memory_gb_per_s * 1e9 * (1 if cluster.is_measured else MEMORY_EFFICIENCY)


def memory_s(num_bytes: float, cluster: Cluster) -> float:
    """Seconds to read or write that much of a rank's memory."""
    return num_bytes / memory_rate(cluster)


def matmul_s(flops: float, num_tokens: float, cluster: Cluster, calibration: Calibration, split: int = 1) -> float:
    """Seconds of matrix products over a micro-batch of `num_tokens`."""
    return flops / (cluster.peak_tflops * 1e12 * calibration.matmul_share(num_tokens, split))
