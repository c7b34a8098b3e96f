"""plan: Hybrid-ZeRO group sizes. Parameters and gradients are whole on every rank; optimizer states have a group of
their own, so that the refresh after an update can stay inside a host (InternEvo's headline setting 1/1/8)."""

from internevo_engine.errors import PlanError
from internevo_engine.plan.topology import Topology
from internevo_engine.units import divisors, one_of


def group_size(asked: int | str, topology: Topology, *, key: str) -> int:
    """Number of ranks that share one state.

    Raises:
        PlanError: the size does not divide the world.
    """
    named = {"node": topology.ranks_per_host, "world": topology.world}
    size = named[asked] if isinstance(asked, str) else asked
    if topology.world % size:
        raise PlanError(f"{key}={size} does not divide world={topology.world}; use {one_of(divisors(topology.world))}")
    return size
