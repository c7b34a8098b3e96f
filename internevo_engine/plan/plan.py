"""plan: config and ranks become numbers. Hands on a frozen `Plan`: groups, buckets, memory.

Pure arithmetic, no torch: a laptop plans for 1,024 ranks in milliseconds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from internevo_engine import _core
from internevo_engine.config.schema import Config, ModelConfig, StepConfig
from internevo_engine.errors import MemoryNeededError, PlanError
from internevo_engine.plan.hybrid_zero import GroupSizes, group_sizes
from internevo_engine.plan.levels import levels
from internevo_engine.plan.memory import MemoryForecast, decoder_activations, forecast_states
from internevo_engine.plan.params import Param
from internevo_engine.plan.reduction import promise, reduction_mode
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Level, Mode
from internevo_engine.units import format_bytes, format_count

USABLE_SHARE = 0.94
"""Of a rank's memory; the rest goes to fragmentation."""


@dataclass(frozen=True)
class Plan:
    """What every rank does, decided before step 1. The same on all ranks."""

    config: StepConfig
    topology: Topology
    params: tuple[Param, ...]
    dtype: str
    """'fp32' or 'bf16': parameters and computation."""
    sizes: GroupSizes
    """Neighbouring ranks that share one copy of each state."""
    mode: Mode
    """How gradients are summed."""
    levels: tuple[Level, ...]
    """The sizes as digits of a rank, inside hosts and between them; every collective runs over one of them."""
    buckets: tuple[_core.Bucket, ...]
    """Flat buffers in the order in which gradients appear, the last layers first; then those of frozen parameters."""
    memory: MemoryForecast

    @property
    def num_params(self) -> int:
        return sum(param.numel for param in self.params)

    @property
    def num_trained_params(self) -> int:
        return sum(param.numel for param in self.params if param.trained)

    @property
    def trained_buckets(self) -> tuple[_core.Bucket, ...]:
        """The first ones, which have gradients and optimizer states."""
        return tuple(bucket for bucket in self.buckets if bucket.trained)

    @property
    def micro_batches_per_step(self) -> int:
        """Over all ranks."""
        return self.config.grad_accum * self.topology.world


def make_plan(config: Config, params: Sequence[Param], topology: Topology) -> Plan:
    """The plan of a run: of our decoder the activations are known too.

    Args:
        params: the parameter table, in forward order.

    Raises:
        PlanError: as `plan_step`.
    """
    plan = plan_step(config.step, params, topology, dtype=resolve_dtype(config.model, topology.device))
    return replace(plan, memory=replace(plan.memory, **decoder_activations(config, plan.dtype)))


def plan_step(config: StepConfig, params: Sequence[Param], topology: Topology, *, dtype: str) -> Plan:
    """Decide groups and buckets for any model, and forecast the states of one rank.

    Args:
        params: the parameter table, in forward order.
        dtype: 'fp32' or 'bf16', of parameters and computation.

    Raises:
        PlanError: group sizes that don't fit the number of ranks, or what graph.mode=hooks or world_invariant can't do.
    """
    sizes, mode = group_sizes(config.zero, topology), reduction_mode(config, topology.world)
    if config.graph.mode == "hooks":
        _refuse_what_hooks_can_not_do(config, sizes)
    digits = levels(sizes.param, sizes.grad, sizes.optim, topology.world, topology.ranks_per_host)
    decayed = {param.name: config.optim.decay == "all" or param.is_matrix for param in params}
    buckets = _core.make_buckets(
        [_core.Param(param.numel, param.layer, decayed[param.name], param.trained) for param in params],
        target_bytes=int(config.comm.bucket_mb * 1e6),
        num_shards=sizes.optim,
    )
    trained, frozen = (sum(b.numel for b in buckets if b.trained == each) for each in (True, False))
    memory = forecast_states(
        trained, frozen, dtype=dtype, sizes=sizes, mode=mode, grad_accum=config.grad_accum, device=topology.device
    )
    return Plan(config, topology, tuple(params), dtype, sizes, mode, digits, tuple(buckets), memory)


def _refuse_what_hooks_can_not_do(config: StepConfig, sizes: GroupSizes) -> None:
    """Eager autograd has whole parameters and gradients and the backend's sums."""
    asked = {
        "zero.param": (sizes.param, 1),
        "zero.grad": (sizes.grad, 1),
        "comm.reduction": (config.comm.reduction, "fast"),
        "run.guard": ("full" if config.audit else "light", "light"),
        "world_invariant": (str(config.world_invariant).lower(), "false"),
    }
    for key, (found, allowed) in asked.items():
        if found != allowed:
            raise PlanError(f"{key}={found} needs graph.mode=graph; with graph.mode=hooks use {key}={allowed}")


def resolve_dtype(model: ModelConfig, device: str) -> str:
    """model.dtype, with `auto` decided by the device."""
    return {"cuda": "bf16", "cpu": "fp32"}[device] if model.dtype == "auto" else model.dtype


def check_memory(config: Config, plan: Plan) -> None:
    """Refuse the plan of a run that can't fit.

    Raises:
        MemoryNeededError: with the bytes needed, the bytes there, and what would fit.
    """
    there = plan.topology.memory_bytes
    if there is None or plan.memory.total <= there * USABLE_SHARE:
        return
    raise MemoryNeededError(
        f"a rank needs {format_bytes(plan.memory.total)} "
        f"({format_bytes(plan.memory.states)} of it for parameters, gradients and optimizer states), "
        f"but only {format_bytes(there)} are there per rank; {_remedy(config, plan, int(there * USABLE_SHARE))}"
    )


def _remedy(config: Config, plan: Plan, limit: int) -> str:
    trials = [(changes, _replan(config, plan, changes).memory.total) for changes in _alternatives(config)]
    fitting = [
        " ".join(f"{key}={value}" for key, value in changes.items()) for changes, total in trials if total <= limit
    ]
    if fitting:
        return "to fit: " + ", or ".join(fitting)
    least = min(total for _, total in trials)
    return (
        f"nothing tried here fits (the least: {format_bytes(least)}): take a smaller model, such as configs/demo.yaml, "
        "or see what this one needs elsewhere with --dry-run --gpus 8"
    )


def _alternatives(config: Config) -> Iterator[Mapping[str, int | str]]:
    """Overrides with the same global batch that need less memory, mildest first."""
    data = config.data
    sharded: Mapping[str, int | str] = {"zero.optim": "world"}
    yield sharded
    for micro_batch in (n for n in (4, 2, 1) if n < data.micro_batch and data.micro_batch % n == 0):
        grad_accum = data.grad_accum * data.micro_batch // micro_batch
        smaller: Mapping[str, int | str] = {"data.micro_batch": micro_batch, "data.grad_accum": grad_accum}
        yield smaller
        yield {**smaller, **sharded}
    yield {"model.dtype": "bf16", **sharded}


def _replan(config: Config, plan: Plan, changes: Mapping[str, int | str]) -> Plan:
    for key, value in changes.items():
        section, name = key.split(".")
        update = {section: getattr(config, section).model_copy(update={name: value})}
        config = config.model_copy(update=update)
    return make_plan(config, plan.params, plan.topology)


def describe(config: Config, plan: Plan) -> str:
    """The plan of a run as a person reads it."""
    topology = plan.topology
    largest = max(bucket.numel for bucket in plan.trained_buckets)
    part = "" if plan.num_trained_params == plan.num_params else f" ({format_count(plan.num_trained_params)} trained)"
    hosts = f"{topology.num_hosts} host{'s' * (topology.num_hosts > 1)}"
    where = f"{topology.world} ranks = {hosts} x {topology.ranks_per_host} {topology.device}"
    head = [
        ("model", f"{config.model.family}, {format_count(plan.num_params)} parameters{part}, {plan.dtype}"),
        ("ranks", where),
        ("shards", f"{plan.sizes} (ranks that share one copy of the state)"),
        (
            "batch",
            f"{config.data.micro_batch} x {config.data.seq_len} tokens x {config.data.grad_accum} micro-batches "
            f"x {topology.world} ranks = {config.step_tokens(topology.world):,} tokens a step",
        ),
        ("sums", promise(plan.mode, plan.config, topology.world)),
        ("buckets", f"{len(plan.trained_buckets)}, the largest {format_bytes(largest * 4)} of fp32 gradients"),
    ]
    memory = [
        (name, format_bytes(value)) for name, value in (*asdict(plan.memory).items(), ("total", plan.memory.total))
    ]
    there = topology.memory_bytes
    lines = [f"{name:<8} {text}" for name, text in head if text]
    lines += ["memory per rank" + (f" (there: {format_bytes(there)})" if there else "")]
    lines += [f"  {name:<11} {text:>8}" for name, text in memory]
    return "\n".join(lines)
