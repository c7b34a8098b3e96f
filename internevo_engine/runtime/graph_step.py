"""runtime: graph.mode=graph, a step as one captured Program that C++ executes.

Measure, capture, schedule, agree, compile, execute: the stages meet here, once, before the first step. Then a step is
one call, or one a micro-batch and one for the rest.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from internevo_engine._core import Bucket
from internevo_engine.graph.capture import capture
from internevo_engine.graph.loss import LossFunction
from internevo_engine.graph.regions import asking_machine, compile_ahead, compile_regions
from internevo_engine.graph.run import batch_values
from internevo_engine.graph.step_graph import Call, Runnable, StepGraph
from internevo_engine.models.initialize import TORCH_DTYPES
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Program
from internevo_engine.runtime import audit
from internevo_engine.runtime.agreement import agree_on
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.executor import Bindings, Executor, OwnedState, ParamView
from internevo_engine.runtime.limits import Limits
from internevo_engine.runtime.machine import DEVICES
from internevo_engine.runtime.measure import machine_costs
from internevo_engine.runtime.optimizers import Optimizer, Shard
from internevo_engine.runtime.sharded_state import ShardedState
from internevo_engine.runtime.transfers import cut_as_measured, routes
from internevo_engine.schedule.costs import CostTable
from internevo_engine.schedule.step_program import recompute_of, step_program
from internevo_engine.units import format_seconds


class GraphStep:
    """Updates of one model; the same calls on every rank."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: LossFunction,
        plan: Plan,
        communicator: Communicator,
        state: ShardedState,
        optimizer: Optimizer,
        *,
        example: object,
        say: Callable[[str], None],
    ) -> None:
        """Everything that takes time before the first step.

        Raises:
            CaptureError: the model can't be captured whole.
            RanksDisagreeError: this rank would execute another Program than rank 0.
        """
        costs = machine_costs(plan, communicator, say)
        with state.whole_parameters(), asking_machine(plan.config.graph.compile):
            self.graph = capture(model, loss_fn, example, recompute=recompute_of(plan.config.graph))
        self.program = step_program(plan, self.graph, costs)
        agree_on("Program", self.program.text, communicator)
        compiled = compile_together(self.graph, plan, communicator, say)
        bindings = self._bindings(compiled, costs, plan, communicator, state, optimizer)
        self._executor = Executor(self.program, bindings, plan.config.optim)
        self._communicator, self._audited = communicator, plan.config.audit

    @property
    def kept_bytes(self) -> int:
        """Activations in memory between forward and backward of a micro-batch."""
        return self.graph.kept_bytes

    def forward_backward(self, number: int, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum and count of micro-batch `number` on this rank, 0-dim; its gradients are on their way."""
        return self._executor.advance(number, self._values(batch))

    def finish(
        self, micro_batches: Sequence[object], *, lr: float, step: int, stop: bool, limits: Limits
    ) -> list[float]:
        """The rest of the step: these micro-batches, then the update.

        Returns:
            Loss sum, count, stop requests and squared gradient norm, over all micro-batches and ranks. Nothing is
            updated where these are not finite or above the limits, or the count is 0.

        Raises:
            CorruptionError: with config.audit, where bits changed on their way or at rest; nothing was updated.
        """
        inputs = [self._values(batch) for batch in micro_batches]
        totals = self._executor.step(inputs, lr=lr, step=step, stop=stop, limits=limits).tolist()
        if self._audited:
            audit.check(self._executor, self.program, self._communicator, step)
        return totals

    def states_replaced(self) -> None:
        """Other optimizer states are there than the last update left."""
        self._executor.accept_states()

    @property
    def trace(self) -> torch.Tensor:
        """When each instruction of `program` ran in the last step; see Executor.trace."""
        return self._executor.trace

    def close(self) -> None:
        """End the lanes' threads and let go of the process groups."""
        self._executor.close()

    def _bindings(
        self,
        compiled: Mapping[str, Runnable],
        costs: CostTable,
        plan: Plan,
        communicator: Communicator,
        state: ShardedState,
        optimizer: Optimizer,
    ) -> Bindings:
        graph, wire = self.graph, TORCH_DTYPES[plan.config.comm.wire]
        table = routes(communicator.backend, plan.mode, wire, audited=plan.config.audit)
        return Bindings(
            rank=communicator.rank,
            regions={call.name: bind(graph, call, compiled[call.region.name]) for call in graph.calls},
            call_params=parameter_views(graph, plan),
            grad_offsets=[_gradient_offsets(graph, bucket, plan) for bucket in plan.trained_buckets],
            buffers=_persistent(self.program, state),
            owned=[_owned(shard, optimizer) for shard in state.shards],
            groups=communicator.group_names,
            wire=wire,
            routes={level.name: cut_as_measured(table, costs, level) for level in plan.levels},
            queueing=DEVICES[communicator.device.type].queueing,
            audited=plan.config.audit,
            board=communicator.board,
        )

    def _values(self, batch: object) -> dict[str, torch.Tensor]:
        return {f"%{name}": tensor for name, tensor in batch_values(self.graph, batch).items()}


def compile_together(
    graph: StepGraph, plan: Plan, communicator: Communicator, say: Callable[[str], None]
) -> dict[str, Runnable]:
    """Something that runs for each region, by its name. The ranks of a host compile each region once, into the cache
    where all of them find it.

    On CPU in forked processes, as many as the rank has cores; a process that has used CUDA can't be forked.
    """
    if plan.config.graph.compile == "eager":
        return compile_regions(graph, "eager")
    named = f"{len(graph.regions)} region{'s' * (len(graph.regions) > 1)}"
    say(f"compiling {named}")
    started, ranks = time.perf_counter(), plan.topology.ranks_per_host
    cores = len(os.sched_getaffinity(0)) // ranks if plan.topology.device == "cpu" else 1
    own = graph.regions[communicator.rank % ranks :: ranks]
    is_warm = compile_ahead(own, max(1, cores)) == len(own)
    communicator.agree("compiled", "")
    compiled = compile_regions(graph, "inductor")
    seconds = format_seconds(time.perf_counter() - started)
    say(f"compiled {named}, warm, {seconds}" if is_warm else f"compiled {named}, cold, {seconds}; cached for next time")
    return compiled


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
    tensors |= {f"gsum[{b}].{j}": flat for j, flats in enumerate(state.partial_sums) for b, flat in enumerate(flats)}
    return {
        buffer.name: tensors[buffer.name] for buffer in program.buffers if buffer.persistent and buffer.name in tensors
    }


def _owned(shard: Shard, optimizer: Optimizer) -> OwnedState:
    states = dict(zip(optimizer.states, shard.states, strict=True))
    return OwnedState(shard.master, **states, param=shard.param, decayed_numel=shard.decayed_numel)


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
