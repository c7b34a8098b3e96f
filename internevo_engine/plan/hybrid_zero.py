"""plan: Hybrid-ZeRO group sizes, as numbers. Each state has a group of its own, so that the refresh after an update can
stay inside a host while gradients are reduced over all (InternEvo's headline setting 1/1/8)."""

from dataclasses import dataclass

from internevo_engine.config.schema import ZeroConfig
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Mode


@dataclass(frozen=True)
class GroupSizes:
    """Ranks that share one copy of a state."""

    param: int
    grad: int
    optim: int

    def summed(self, mode: Mode) -> int:
        """Ranks over which summed gradients are cut while they accumulate: only `fast` leaves levels for the end."""
        return self.grad if mode == "fast" else self.optim

    def __str__(self) -> str:
        return f"P {self.param} | G {self.grad} | OS {self.optim}"


def group_sizes(zero: ZeroConfig, topology: Topology) -> GroupSizes:
    """The names in `zero` as numbers of ranks; plan/levels.py checks that each divides the next."""
    named = {"node": topology.ranks_per_host, "world": topology.world}
    return GroupSizes(*(size if isinstance(size, int) else named[size] for _, size in zero))
