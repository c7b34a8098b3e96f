"""runtime: graph.mode=graph, a step as one captured Program that C++ executes.

Measure, capture, schedule, agree, compile, execute: the stages meet here, once, before the first step. Then a step is
one call.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from internevo_engine._core import Bucket
from internevo_engine.errors import RanksDisagreeError
from internevo_engine.graph.capture import capture
from internevo_engine.graph.regions import asking_machine, compile_ahead, compile_regions
from internevo_engine.graph.run import batch_values
from internevo_engine.graph.step_graph import Call, Runnable, StepGraph
from internevo_engine.models.initialize import TORCH_DTYPES
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Program
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.executor import Bindings, Executor, OwnedState, ParamView
from internevo_engine.runtime.machine import DEVICES
from internevo_engine.runtime.measure import machine_costs
from internevo_engine.runtime.optimizers import Optimizer, Shard
from internevo_engine.runtime.sharded_state import ShardedState
from internevo_engine.runtime.transfers import cut_as_measured, routes
from internevo_engine.schedule.costs import CostTable
from internevo_engine.schedule.step_program import first_difference, recompute_of, step_program


class GraphStep:
    """One update; the same call on every rank."""

    @classmethod
    def prepare(
        cls,
        model: torch.nn.Module,
        loss_fn: Callable[..., Any],
        plan: Plan,
        communicator: Communicator,
        *,
        example: Any,
        say: Callable[[str], None],
    ) -> Callable[[ShardedState, Optimizer], "GraphStep"]:
        """Everything that needs the model whole; what comes back makes the step of the sharded state.

        Raises:
            CaptureError: the model can't be captured whole.
            RanksDisagreeError: this rank would execute another Program than rank 0.
        """
        costs = machine_costs(plan, communicator, say)
        with asking_machine(plan.config.graph.compile):
            graph = capture(model, loss_fn, example, recompute=recompute_of(plan.config.graph))
        program = step_program(plan, graph, costs)
        agree_on(program, communicator)
        if plan.config.graph.compile == "inductor":
            share_compilation(graph, plan, communicator)
        compiled = compile_regions(graph, plan.config.graph.compile, say)
        return partial(cls, graph, program, costs, compiled, plan, communicator)

    def __init__(
        self,
        graph: StepGraph,
        program: Program,
        costs: CostTable,
        compiled: Mapping[str, Runnable],
        plan: Plan,
        communicator: Communicator,
        state: ShardedState,
        optimizer: Optimizer,
    ) -> None:
        self.graph, self.program, self._communicator = graph, program, communicator
        wire = TORCH_DTYPES[plan.config.comm.wire]
        table = routes(communicator.backend, plan.config.comm.reduction, wire)
        bindings = Bindings(
            rank=communicator.rank,
            regions={call.name: bind(graph, call, compiled[call.region.name]) for call in graph.calls},
            call_params=parameter_views(graph, plan),
            grad_offsets=[_gradient_offsets(graph, bucket, plan) for bucket in plan.buckets],
            buffers=_persistent(program, state),
            owned=[_owned(shard, optimizer) for shard in state.shards],
            groups=communicator.group_names,
            wire=wire,
            routes={level.name: cut_as_measured(table, costs, level) for level in plan.levels},
            queueing=DEVICES[communicator.device.type].queueing,
        )
        self._executor = Executor(program, bindings, plan.config.optim)

    def __call__(self, micro_batches: Sequence[Any], *, lr: float, step: int, stop: bool) -> list[float]:
        """Loss sum, valid tokens, stop requests and squared gradient norm, over all ranks.

        Nothing is updated where these are not finite or no token is valid.
        """
        inputs = [_named(batch_values(self.graph, batch)) for batch in micro_batches]
        return self._executor.step(inputs, lr=lr, step=step, stop=stop).tolist()

    @property
    def trace(self) -> torch.Tensor:
        """When each instruction of `program` ran in the last step; see Executor.trace."""
        return self._executor.trace

    def close(self) -> None:
        """End the lanes' threads and let go of the process groups."""
        self._executor.close()


def share_compilation(graph: StepGraph, plan: Plan, communicator: Communicator) -> None:
    """The ranks of a host compile each region once, into the cache where all of them find it.

    On CPU in forked processes, as many as the rank has cores; a process that has used CUDA can't be forked.
    """
    ranks = plan.topology.ranks_per_host
    cores = len(os.sched_getaffinity(0)) // ranks if plan.topology.device == "cpu" else 1
    compile_ahead(graph.regions[communicator.rank % ranks :: ranks], max(1, cores))
    communicator.agree("compiled", "")


def parameter_views(graph: StepGraph, plan: Plan) -> dict[str, list[ParamView]]:
    """For each call, where the parameters lie that its region takes after the values."""
    view_of = {
        plan.params[param].name: ParamView(number, offset, plan.params[param].shape)
        for number, bucket in enumerate(plan.buckets)
        for param, offset in zip(bucket.params, bucket.offsets, strict=True)
    }
    return {call.name: [view_of[name] for name in call.inputs if name in view_of] for call in graph.calls}


def _gradient_offsets(graph: StepGraph, bucket: Bucket, plan: Plan) -> list[int]:
    places = zip(bucket.params, bucket.offsets, strict=True)
    return [offset for param, offset in places if plan.params[param].name in graph.gradients]


def _persistent(program: Program, state: ShardedState) -> dict[str, torch.Tensor]:
    tensors = {f"{kind}[{number}]": flat for kind in ("param", "pshard") for number, flat in enumerate(state.held)}
    tensors |= {f"gsum[{number}]": flat for number, flat in enumerate(state.sums)}
    return {
        buffer.name: tensors[buffer.name] for buffer in program.buffers if buffer.persistent and buffer.name in tensors
    }


def _owned(shard: Shard, optimizer: Optimizer) -> OwnedState:
    states = dict(zip(optimizer.states, shard.states, strict=True))
    return OwnedState(shard.master, **states, param=shard.param, decayed_numel=shard.decayed_numel)


def _named(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"%{name}": tensor for name, tensor in values.items()}


def bind(graph: StepGraph, call: Call, compiled: Runnable) -> Runnable:
    """A region as the Program calls it: the values it reads, then its parameters; constants are bound."""
    parameters = set(graph.parameters)
    reads = [name for name in call.inputs if name not in parameters and name not in graph.constants]
    given = [*reads, *(name for name in call.inputs if name in parameters)]
    if given == list(call.inputs):
        return compiled
    place = {name: index for index, name in enumerate(given)}
    constants = [graph.constants.get(name) for name in call.inputs]
    order = [place.get(name, -1) for name in call.inputs]

    def run(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return compiled(*(operands[i] if i >= 0 else c for i, c in zip(order, constants, strict=True)))

    return run


def agree_on(program: Program, communicator: Communicator) -> None:
    """Compare Programs through the store, before any data moves.

    Raises:
        RanksDisagreeError: this rank's Program is not rank 0's.
    """
    hashes = communicator.agree("program hash", program.hash)
    if len(set(hashes)) == 1:
        return
    texts = communicator.agree("program text", program.text)
    others = [rank for rank, found in enumerate(hashes) if found != hashes[communicator.rank]]
    difference = first_difference(program.text, texts[others[0]])
    raise RanksDisagreeError(
        f"rank {communicator.rank} would run another Program than rank {others[0]}: {difference}; "
        "start all ranks with the same config, code and torch"
    )
