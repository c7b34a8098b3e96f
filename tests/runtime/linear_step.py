"""A step small enough to be written by hand: linear layers with ReLU, a squared loss, and their backward.

`bind` gives what an Executor or Interpreter needs on one rank; `torch_losses_and_params` is the same training by
autograd and torch's own AdamW, in one process on all batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from internevo_engine._core import Bucket, Param, make_buckets
from internevo_engine.config.schema import OptimConfig
from internevo_engine.plan.levels import levels, owned_slice
from internevo_engine.program import Lane, Level, Mode, Program
from internevo_engine.runtime.executor import Bindings, OwnedState, ParamView, Region
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.machine import DEVICES
from internevo_engine.runtime.transfers import Route, routes
from internevo_engine.schedule.costs import MODELLED
from internevo_engine.schedule.graph_spec import CallSpec, GraphSpec, ValueSpec
from internevo_engine.schedule.make_program import make_header, make_program

ROWS, WIDTH, LAYERS = 5, 6, 3
SHAPES = [(WIDTH, WIDTH), (WIDTH,)] * LAYERS + [(WIDTH, 3)]  # weight and bias of each layer, then the head
OPTIM = OptimConfig(lr=0.02, weight_decay=0.1, clip=0.5)


@dataclass(frozen=True)
class Plan:
    """Group sizes of P, G, OS, and how the step is scheduled."""

    groups: tuple[int, int, int]
    mode: Mode = "ordered"
    overlap: bool = True
    micro_batches: int = 2
    dtype: torch.dtype = torch.float32
    wire: torch.dtype = torch.float32
    pieces: int = 2
    """Of each transfer."""
    frozen: tuple[int, ...] = ()
    """Parameters that stay as they are."""


def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return (torch.relu(x @ weight + bias),)


def loss(x: Tensor, target: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    error = (x @ head).float() - target
    return error.square().sum(), error.new_tensor(float(len(x))), (2 * error).to(x.dtype)


def backward_head(error: Tensor, x: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    return error @ head.T, x.T @ error


def backward(d_out: Tensor, x: Tensor, out: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    d_sum = d_out * (out > 0)
    return d_sum @ weight.T, x.T @ d_sum, d_sum.sum(0)


def graph_spec(dtype: torch.dtype, frozen: Sequence[int] = ()) -> GraphSpec:
    calls = [
        CallSpec(f"fwd.{i}", "fwd", 1000, 100, (f"h{i}",), (f"h{i + 1}",), (2 * i, 2 * i + 1), {})
        for i in range(LAYERS)
    ]
    head, last = 2 * LAYERS, f"h{LAYERS}"
    calls.append(CallSpec("loss", "loss", 1000, 100, (last, "target"), ("sum", "count", "error"), (head,), {}))
    reads, writes = ("error", last), (f"dh{LAYERS}", f"g{head}")
    calls.append(CallSpec("bwd.head", "bwd", 1000, 100, reads, writes, (head,), {f"g{head}": head}))
    for i in reversed(range(LAYERS)):
        writes = (f"dh{i}", f"g{2 * i}", f"g{2 * i + 1}")
        grads = {f"g{p}": p for p in (2 * i, 2 * i + 1) if p not in frozen}
        reads = (f"dh{i + 1}", f"h{i}", f"h{i + 1}")
        calls.append(CallSpec(f"bwd.{i}", "bwd", 1000, 100, reads, writes, (2 * i,), grads))
    item = dtype.itemsize
    size = {f"{kind}{i}": ROWS * WIDTH * item for kind in ("h", "dh") for i in range(LAYERS + 1)}
    size |= {f"g{p}": torch.Size(shape).numel() * item for p, shape in enumerate(SHAPES)}
    size |= {"sum": 4, "count": 4, "error": ROWS * 3 * item, "target": ROWS * 3 * 4}
    return GraphSpec(tuple(calls), tuple(ValueSpec(*each) for each in size.items()), ("sum", "count"))


def regions() -> dict[str, Region]:
    return {
        **{f"fwd.{i}": forward for i in range(LAYERS)},
        "loss": loss,
        "bwd.head": backward_head,
        **{f"bwd.{i}": backward for i in range(LAYERS)},
    }


def plan_levels(plan: Plan, world: int) -> tuple[Level, ...]:
    return levels(*plan.groups, world, ranks_per_host=2 if world == 4 else world)


def plan_buckets(plan: Plan) -> list[Bucket]:
    table = [
        Param(torch.Size(shape).numel(), p // 2, len(shape) > 1, p not in plan.frozen) for p, shape in enumerate(SHAPES)
    ]
    return make_buckets(table, target_bytes=4 * 100, num_shards=plan.groups[2])


def program(plan: Plan, world: int) -> Program:
    graph = graph_spec(plan.dtype, plan.frozen)
    header = make_header(
        graph,
        plan_buckets(plan),
        plan_levels(plan, world),
        world=world,
        micro_batches=plan.micro_batches,
        mode=plan.mode,
        param_bytes=plan.dtype.itemsize,
        wire_bytes=plan.wire.itemsize,
    )
    return make_program(header, graph, MODELLED["cpu"], overlap=plan.overlap)


def initial_params() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) / 2 for shape in SHAPES]


def batch(index: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """One micro-batch of one rank: its inputs and targets."""
    generator = torch.Generator().manual_seed(100 + index)
    x, target = torch.randn(ROWS, WIDTH, generator=generator), torch.randn(ROWS, 3, generator=generator)
    return {"%h0": x.to(dtype), "%target": target}


def batches_of(step: int, rank: int, world: int, plan: Plan) -> list[dict[str, Tensor]]:
    first = step * world * plan.micro_batches
    return [batch(first + m * world + rank, plan.dtype) for m in range(plan.micro_batches)]


def flat_params(bucket: Bucket) -> Tensor:
    flat = torch.zeros(bucket.numel)
    for param, offset in zip(bucket.params, bucket.offsets, strict=True):
        flat[offset:][: torch.Size(SHAPES[param]).numel()] = initial_params()[param].flatten()
    return flat


def bind(program: Program, plan: Plan, place: Place, *, device: str = "cpu", **changes: object) -> Bindings:
    """The state of this rank at the start of training, and its process groups."""
    buckets, cuts = plan_buckets(plan), program.levels
    buffers: dict[str, Tensor] = {}
    owned: list[OwnedState] = []
    for index, bucket in enumerate(buckets):
        offset, numel = owned_slice(place.rank, cuts, "P", bucket.numel)
        held = "param" if numel == bucket.numel else "pshard"
        buffers[f"{held}[{index}]"] = shard = flat_params(bucket)[offset:][:numel].to(device, plan.dtype)
        if not bucket.trained:
            continue
        sums = [each for each in program.buffers if each.name.startswith(f"gsum[{index}]")]
        buffers |= {each.name: torch.full((each.bytes // 4,), torch.nan, device=device) for each in sums}
        start, length = owned_slice(place.rank, cuts, "OS", bucket.numel)
        own = shard[start - offset :][:length]
        master = own if plan.dtype == torch.float32 else flat_params(bucket)[start:][:length].to(device, copy=True)
        decayed = min(max(bucket.decayed_numel - start, 0), length)
        states = (torch.zeros_like(master), torch.zeros_like(master))
        owned.append(OwnedState(master, *states, None if master is own else own, decayed))
    bound: dict[str, object] = {
        "rank": place.rank,
        "regions": regions(),
        "call_params": call_params(plan, buckets),
        "grad_offsets": [bucket.offsets for bucket in buckets if bucket.trained],
        "buffers": buffers,
        "owned": owned,
        "groups": process_groups(program),
        "wire": plan.wire,
        "routes": {level.name: plan_routes(plan) for level in cuts},
        "queueing": DEVICES[torch.device(device).type].queueing,
    }
    return Bindings(**{**bound, **changes})  # pyright: ignore[reportArgumentType]


def plan_routes(plan: Plan) -> tuple[Route, ...]:
    """Ordered sums in both modes: in mode 'fast' the bits are then the interpreter's as well."""
    return routes("gloo", "ordered", plan.wire, pieces=plan.pieces if plan.overlap else 1)


def call_params(plan: Plan, buckets: Sequence[Bucket]) -> dict[str, list[ParamView]]:
    views = {
        param: ParamView(index, offset, SHAPES[param])
        for index, bucket in enumerate(buckets)
        for param, offset in zip(bucket.params, bucket.offsets, strict=True)
    }
    return {call.name: [views[param] for param in call.params] for call in graph_spec(plan.dtype).calls}


def process_groups(program: Program) -> dict[tuple[Lane, str], str]:
    """A group of its own for each lane and level of the Program, made in the same order on all ranks."""
    names: dict[tuple[Lane, str], str] = {}
    cuts = {level.name: level.groups(program.world) for level in program.levels}
    cuts["all"] = [tuple(range(program.world))]
    places = sorted({(i.lane, i.level) for i in program.instructions if i.level} if program.world > 1 else set())
    for lane, level in places:
        group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in cuts[level]])
        names[lane, level] = group.group_name
    return names


def whole_states(program: Program, plan: Plan, place: Place, bindings: Bindings) -> Mapping[str, Tensor]:
    """Masters and moments of all parameters, put together from their owners: the same names for every plan."""
    states: dict[str, Tensor] = {}
    trained = [bucket for bucket in plan_buckets(plan) if bucket.trained]
    for bucket, owned in zip(trained, bindings.owned, strict=True):
        for name in ("master", "exp_avg", "exp_avg_sq"):
            rows = [torch.empty_like(owned.master) for _ in range(place.world)]
            own = getattr(owned, name).contiguous()
            dist.all_gather(rows, own) if place.world > 1 else rows[0].copy_(own)
            flat = torch.empty(bucket.numel, device=owned.master.device)
            for rank, row in enumerate(rows):
                offset, numel = owned_slice(rank, program.levels, "OS", bucket.numel)
                flat[offset:][:numel] = row
            for param, offset in zip(bucket.params, bucket.offsets, strict=True):
                states[f"{name}.{param}"] = flat[offset:][: torch.Size(SHAPES[param]).numel()].view(SHAPES[param])
    return states


def torch_totals_and_params(steps: int, world: int, plan: Plan) -> tuple[list[list[float]], list[Tensor]]:
    """(loss sum, count, square sum of the gradient sum) of each step, and the parameters at the end."""
    params = [torch.nn.Parameter(param, p not in plan.frozen) for p, param in enumerate(initial_params())]
    split: list[list[torch.nn.Parameter]] = [[p for p in params if p.dim() > 1], [p for p in params if p.dim() == 1]]
    groups = [{"params": split[0], "weight_decay": OPTIM.weight_decay}, {"params": split[1], "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=OPTIM.lr, betas=OPTIM.betas, eps=OPTIM.eps)
    totals = []
    for step in range(steps):
        batches = [each for rank in range(world) for each in batches_of(step, rank, world, plan)]
        x = torch.cat([each["%h0"] for each in batches])
        for i in range(LAYERS):
            x = torch.relu(x @ params[2 * i] + params[2 * i + 1])
        loss_sum = (x @ params[-1] - torch.cat([each["%target"] for each in batches])).square().sum()
        adamw.zero_grad()
        (loss_sum / len(x)).backward()
        norm = torch.nn.utils.clip_grad_norm_(params, OPTIM.clip)
        totals.append([loss_sum.item(), len(x), (norm.item() * len(x)) ** 2])
        adamw.step()
    return totals, [param.detach() for param in params]
