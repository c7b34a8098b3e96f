"""plan: how gradients are summed. Decides the Program's mode once, and says which bits that promises.

`ordered` adds ranks in a binary tree, `invariant` micro-batches as well: one tree over leaf i = m * world + rank, in
which i does not say how many ranks there are. A tree of levels is the tree of the world only for powers of two.
"""

from internevo_engine.config.schema import StepConfig
from internevo_engine.errors import PlanError
from internevo_engine.program import Mode
from internevo_engine.units import one_of


def reduction_mode(config: StepConfig, world: int) -> Mode:
    """comm.reduction, unless world_invariant asks for more.

    Raises:
        PlanError: world_invariant with counts that are no powers of two, or with rounding on the wire.
    """
    if not config.world_invariant:
        return config.comm.reduction
    for key, count in (("world", world), ("grad_accum", config.grad_accum)):
        if not _is_power_of_two(count):
            below = 1 << (count.bit_length() - 1)
            allowed = one_of([below, 2 * below])
            raise PlanError(f"world_invariant=true needs powers of two, found {key}={count}; use {allowed}")
    if config.comm.wire != "fp32":
        raise PlanError(
            f"world_invariant=true needs comm.wire=fp32, found {config.comm.wire}: "
            "what stays on a rank is not rounded, what travels would be"
        )
    return "invariant"


def num_sums(mode: Mode, grad_accum: int) -> int:
    """Buffers in which the micro-batches of a bucket are added: gsum[b], and in mode `invariant` gsum[b].0, .1, ..."""
    return grad_accum.bit_length() if mode == "invariant" else 1


def promise(mode: Mode, config: StepConfig, world: int) -> str:
    """What the mode costs and promises, for people. Nothing is said of `fast`."""
    if mode == "fast":
        return ""
    cost = f"{mode}: each of the {config.grad_accum} micro-batches is reduced"
    if mode == "invariant":
        return f"{cost}; equal bits for every plan and any power of two of ranks"
    if not _is_power_of_two(world):
        return f"{cost}; bits are not promised across plans, for {world} ranks are no power of two"
    if config.comm.wire != "fp32":
        return f"{cost}; bits are not promised across plans, for comm.wire={config.comm.wire} rounds at every level"
    return f"{cost}; equal bits for every plan"


def _is_power_of_two(number: int) -> bool:
    return number.bit_count() == 1
