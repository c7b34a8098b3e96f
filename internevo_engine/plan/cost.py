"""plan: what computing and sending take on a described cluster, in seconds. Hands prices to schedule/cluster_costs.py,
which prices a Program with them, to plan/estimate.py, which does so in closed form, and to
plan/closed_form.py, which prices published runs.

Few physical parameters are fitted (`Calibration`, by plan/calibrate.py); all others are constants with their source.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from internevo_engine.plan.cluster import Cluster
from internevo_engine.program import Level

MEMORY_EFFICIENCY = 0.8
"""Share of the published memory bandwidth that streaming kernels reach (STREAM-like copies on A100 and H100)."""
NEAR_EFFICIENCY = 0.78
"""Share of NVLink's rate that nccl-tests report: 234.9 of 300 GB/s for an all-reduce of 16 GiB on 8 A100."""
CONTENTION = 0.04
"""By how much a collective under way slows computing: it takes a few of the processors and of the memory bandwidth."""
COLLECTIVE_BASE_S = 20e-6
"""Launch and set-up of a collective: NCCL's tuner has 8.4 us, a launch from the host about as much again."""

TREE_HOP, TREE_EFFICIENCY = 1.5, 0.85
"""Of a tree against a ring, in NCCL's tuner: its hops take longer, and it reaches less of the rate."""

Hops = Literal["ranks", "nodes"]


@dataclass(frozen=True)
class Calibration:
    """What published runs fix. The defaults are where a fit starts, and what it keeps of what its rows don't tell."""

    gemm_efficiency: float = 0.73
    """Share of peak FLOPs that matrix products of many tokens reach."""
    half_tokens: float = 220.0
    """Tokens of a micro-batch at which they reach half of it."""
    net_efficiency: float = 0.98
    """Share of the network cards' rate that a ring over two nodes reaches."""
    congestion: float = 0.03
    """By how much a transfer between nodes is lengthened by each doubling of the nodes that it spans."""
    hop_factor: float = 4.0
    """A hop of a large ring in published latencies: each hop holds a chunk back until it is there whole."""
    jitter: float = 0.010
    """Deviation of one rank's computing time within a step, relative."""
    hops: Hops = "ranks"
    """Which hops `hop_factor` lengthens: all, or those between nodes (then by as much as makes both equal on nodes of
    eight). Published rows don't tell."""

    def matmul_share(self, num_tokens: float, split: int = 1) -> float:
        """Of peak FLOPs, for a micro-batch of `num_tokens` whose matrices are split over `split` ranks."""
        return self.gemm_efficiency * num_tokens / (num_tokens + self.half_tokens * split)

    def net_share(self, nodes: float) -> float:
        """Of the network cards' rate, for a group that spans that many nodes."""
        return self.net_efficiency / (1 + self.congestion * max(math.log2(nodes) - 1, 0))

    def hops_s(self, near: float, far: float, cluster: Cluster) -> float:
        """Seconds of that many hops inside nodes and between them."""
        return (self._near_factor * near * cluster.near.hop_us + self._far_factor * far * cluster.far.hop_us) * 1e-6

    @property
    def _near_factor(self) -> float:
        return self.hop_factor if self.hops == "ranks" else 1

    @property
    def _far_factor(self) -> float:
        return self.hop_factor if self.hops == "ranks" else 2.7 * self.hop_factor - 1.7

    def waiting(self, ranks: int) -> float:
        """How many times as long as the average rank the slowest of them computes."""
        return 1 + self.jitter * expected_maximum(ranks)


@cache
def expected_maximum(count: int) -> float:
    """Of `count` independent standard normals: the integral of x d(Phi^count), exact to 1e-4."""
    x = np.linspace(-8, 10, 20_001)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x]) ** count
    return float(np.sum((x[1:] + x[:-1]) / 2 * np.diff(below)))


AS_MEASURED = Calibration(gemm_efficiency=1, half_tokens=0, net_efficiency=1, congestion=0, hop_factor=1, jitter=0)
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
    hops_s = calibration.hops_s(group.size - 1 - far_hops, far_hops, cluster)
    moved = passes * (group.size - 1) / group.size * num_bytes
    seconds = moved / near_rate(cluster) if group.per_node > 1 else 0.0
    if group.nodes > 1:
        rate = cluster.far.gb_per_s * 1e9 * calibration.net_share(group.nodes)
        seconds = max(seconds, moved * group.sharing / rate)
    return COLLECTIVE_BASE_S + passes * hops_s + seconds


def level_rate(
    level: Level, passes: int, num_bytes: float, cluster: Cluster, calibration: Calibration
) -> tuple[float, float]:
    """Latency in seconds and bytes a second over one level, by bytes that each rank sends.

    A ring inside nodes. Over a far level, where all ranks of a node send at once, each in a group with one rank a node,
    a ring or a tree, whichever is faster for buffers of `num_bytes`: so NCCL decides.
    """
    if level.link == "near":
        return COLLECTIVE_BASE_S + passes * calibration.hops_s(level.size - 1, 0, cluster), near_rate(cluster)
    share = calibration.net_share(level.size * level.stride / cluster.ranks_per_node)
    rate = cluster.far_gb_per_s_of_rank * 1e9 * share
    hops = {"ring": level.size - 1, "tree": TREE_HOP * math.ceil(math.log2(level.size))}
    rates = {"ring": rate, "tree": rate * TREE_EFFICIENCY}
    sent = passes * num_bytes * (level.size - 1) / level.size
    lines = [(COLLECTIVE_BASE_S + passes * calibration.hops_s(0, hops[kind], cluster), rates[kind]) for kind in hops]
    return min(lines, key=lambda line: line[0] + sent / line[1])


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
