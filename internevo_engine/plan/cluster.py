"""plan: a cluster in a few lines, there or not. A preset by name or a YAML file with the same keys; hands a `Cluster`
to plan/cost.py, which prices with it, and to plan/search.py, which plans for it.

Ranks of a node are neighbours, and a node's network cards are shared evenly by its ranks: with the levels of
plan/levels.py every rank of a node sends over a far level at the same time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from internevo_engine.config.inputs import Positive, Section
from internevo_engine.config.yaml_source import read_file
from internevo_engine.errors import ConfigError
from internevo_engine.plan.topology import Topology
from internevo_engine.units import one_of

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LinkRate(Section):
    """What leaves in one direction while as much comes in."""

    gb_per_s: Rate
    """GB (1e9 bytes) a second: of a rank for `near`, of a whole node for `far`."""
    hop_us: Rate
    """Time of one hop of a ring, in microseconds."""


class Cluster(Section):
    """Equal nodes of equal ranks."""

    source: str
    """Where the numbers come from."""
    device: Literal["cuda", "cpu"]
    ranks_per_node: Positive
    is_measured: bool = False
    """Whether the rates are what was reached; else they are published peaks, of which plan/cost.py takes shares."""
    nodes: Positive | None = None
    """How many there are; null: any number."""
    peak_tflops: Rate
    """Dense matrix products of the compute dtype, in 1e12 FLOPs a second, as published or as measured."""
    memory_gb: Rate
    """Of a rank."""
    memory_gb_per_s: Rate
    """Reading or writing the memory of a rank."""
    near: LinkRate
    """Between ranks of a node."""
    far: LinkRate
    """Between nodes."""

    @property
    def far_gb_per_s_of_rank(self) -> float:
        """While its neighbours send too."""
        return self.far.gb_per_s / self.ranks_per_node

    def topology(self, world: int) -> Topology:
        """`world` ranks of this cluster.

        Raises:
            ConfigError: there are not as many.
            PlanError: they don't fill its nodes.
        """
        if self.nodes is not None and world > self.nodes * self.ranks_per_node:
            raise ConfigError(
                f"{world} ranks were asked for, but the cluster has {self.nodes} nodes of {self.ranks_per_node}; "
                f"ask for {self.nodes * self.ranks_per_node} at most, or set nodes"
            )
        return Topology(world, min(world, self.ranks_per_node), self.device, int(self.memory_gb * 1e9))


# A ring hop of NCCL's Simple protocol takes 3.4 us over NVLink and 14 us over a network (constants of NCCL's tuner).
# NVLink: 12 links of 25 GB/s one way (A100), 18 (H100). Peak: dense bf16. Both from NVIDIA's data sheets.
_NVLINK_A100 = LinkRate(gb_per_s=300, hop_us=3.4)
_A100 = {
    "device": "cuda",
    "ranks_per_node": 8,
    "peak_tflops": 312,
    "memory_gb": 80,
    "memory_gb_per_s": 2039,
    "near": _NVLINK_A100,
}

PRESETS: Mapping[str, Cluster] = {
    "a100-80g-4x100g": Cluster(
        source="data sheets of A100 80 GB SXM and NVLink 3, 4 cards of 100 Gbit/s a node, as InternEvo's",
        far=LinkRate(gb_per_s=50, hop_us=14),
        **_A100,
    ),
    "a100-80g-8x200g": Cluster(
        source="data sheets of A100 80 GB SXM and NVLink 3, 8 cards of 200 Gbit/s a node",
        far=LinkRate(gb_per_s=200, hop_us=14),
        **_A100,
    ),
    "h100-80g-8x400g": Cluster(
        source="data sheets of H100 80 GB SXM and NVLink 4, 8 cards of 400 Gbit/s a node",
        device="cuda",
        ranks_per_node=8,
        peak_tflops=989,
        memory_gb=80,
        memory_gb_per_s=3350,
        near=LinkRate(gb_per_s=450, hop_us=3.4),
        far=LinkRate(gb_per_s=400, hop_us=14),
    ),
    "lab": Cluster(
        source="bench/lab: two emulated hosts of two ranks, links of 400 Mbit/s; else round figures for a CPU core",
        device="cpu",
        is_measured=True,
        ranks_per_node=2,
        nodes=2,
        peak_tflops=0.05,
        memory_gb=4,
        memory_gb_per_s=10,
        near=LinkRate(gb_per_s=1, hop_us=60),
        far=LinkRate(gb_per_s=0.05, hop_us=150),
    ),
}


def load_cluster(name: str) -> Cluster:
    """A preset, or the YAML file of that name.

    Raises:
        ConfigError: neither, or the file's keys don't describe a cluster.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name).is_file():
        raise ConfigError(f"--cluster {name}: neither a file nor a preset; presets are {one_of(list(PRESETS))}")
    source = read_file(Path(name))
    try:
        cluster = Cluster.model_validate(source.values)
    except ValidationError as error:
        problems = [_explain(problem["loc"], problem["msg"]) for problem in error.errors(include_url=False)]
        raise ConfigError(*source.problems, *(f"{name}: {problem}" for problem in problems)) from None
    if source.problems:
        raise ConfigError(*source.problems)
    return cluster


def _explain(location: tuple[int | str, ...], message: str) -> str:
    return f"{'.'.join(map(str, location))}: {message[0].lower()}{message[1:]}"
