"""Engine: training steps of any module, for the loop and for people with a loop of their own.

    engine = Engine(model, loss_fn, optim={"lr": 1e-3}, zero={"optim": "world"}, grad_accum=2, steps=1000)
    result = engine.step([batch, other_batch])

Settings and the module's parameter table become a plan here; `graph.mode` decides once what a step is: a captured
Program that C++ executes (runtime/graph_step.py), or eager autograd with hooks (runtime/hooks_step.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import Generic, TypeVar

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from internevo_engine.checkpoint.load import Accept, load_newest, whatever_verifies
from internevo_engine.checkpoint.manifest import Manifest
from internevo_engine.checkpoint.remote import open_storage
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.view import view_of
from internevo_engine.config.load import step_config
from internevo_engine.config.schema import CommConfig, GraphConfig, OptimConfig, ZeroConfig
from internevo_engine.errors import DataError, NumbersError, UsageError
from internevo_engine.graph.batch import move
from internevo_engine.graph.loss import LossFunction, loss_and_count
from internevo_engine.graph.module import device_and_dtype, evaluating, parameter_table, placed, unplaced
from internevo_engine.optim.schedules import learning_rate
from internevo_engine.plan.plan import plan_step
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Program
from internevo_engine.runtime.agreement import agree_on
from internevo_engine.runtime.communicator import Communicator, default_place
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.limits import NO_LIMITS, Limits
from internevo_engine.runtime.optimizers import OPTIMIZERS
from internevo_engine.runtime.sharded_state import ShardedState
from internevo_engine.runtime.steps import STEPS, Step

B = TypeVar("B")
"""A micro-batch: a dataclass, a mapping, a sequence or a tensor; tensors are moved to the model's device."""

Keys = Mapping[str, object]


@dataclass(frozen=True)
class StepResult:
    """What one update did, summed over all micro-batches and ranks."""

    loss: float
    """Mean over what the loss function counted (valid tokens, in nats; micro-batches where it gives a mean)."""
    grad_norm: float
    """Global norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """What the loss function counted."""
    stop: bool
    """Some rank asked to stop after this step."""


class Engine(Generic[B]):
    """Trains a module. All ranks call the same methods in the same order.

    A step is `step(micro_batches)`, or `forward_backward(batch)` for each micro-batch and then `optimizer_step()`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        steps: int | None = None,
        grad_accum: int = 1,
        world_invariant: bool = False,
        audit: bool = False,
        optim: OptimConfig | Keys | None = None,
        zero: ZeroConfig | Keys | None = None,
        comm: CommConfig | Keys | None = None,
        graph: GraphConfig | Keys | None = None,
        example: B | None = None,
        place: Place | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take over the parameters of `model`, where they are; every rank gets rank 0's.

        The first batch, or `example`, is captured: with graph.mode=graph all others have its shapes, and what the model
        does in Python (its training mode, say) is what it did then.

        Args:
            loss_fn: (model, batch) -> (sum of the loss over valid tokens, their number), both 0-dim, or a mean (0-dim),
                which counts as 1 whatever the batch holds.
            steps: updates that the learning-rate schedule is made for; None: the rate stays optim.lr.
            grad_accum: micro-batches of this rank in one step.
            world_invariant: see RunConfig; rank r of W must take micro-batch m * W + r of a step as its m-th, and every
                rank compute with equally many threads.
            audit: compare what is received with what was sent, and states at rest, before each update (run.guard=full).
            optim, zero, comm, graph: sections of config/schema.py, as objects or by their keys.
            place: where this rank stands; None: as the default process group of torch.distributed and the launcher say,
                alone where there is no group.
            say: hears what takes time.

        Raises:
            ConfigError: settings that don't exist, don't fit each other, the model or the number of ranks.
            CaptureError: with `example`, a model that can't be captured whole.
            RanksDisagreeError: another rank has another model or other settings.
        """
        sections = {"optim": optim, "zero": zero, "comm": comm, "graph": graph}
        given = {name: section for name, section in sections.items() if section is not None}
        config = step_config(steps=steps, grad_accum=grad_accum, world_invariant=world_invariant, audit=audit, **given)
        load_extension()
        place = place or default_place()
        device, dtype = device_and_dtype(model)
        topology = Topology(place.world, place.local_world, device.type)
        self.plan = plan_step(config, parameter_table(model), topology, dtype=dtype)
        self._communicator = Communicator(place, device, self.plan.levels)
        agree_on("plan", "\n".join(map(str, (*config, *self.plan.params))), self._communicator)
        self._optimizer = OPTIMIZERS[config.optim.name]
        self.state = ShardedState([*placed(model).values()], self.plan, self._communicator, self._optimizer)
        for tensor in unplaced(model):
            self._communicator.broadcast(tensor)
        self.model, self.num_steps_done = model, 0
        self._loss_fn, self._say = loss_fn, say
        self._step: Step | None = None
        self._num_run = 0
        self._savers: dict[str, Saver] = {}
        if example is not None:
            self._ready(self._moved(example))

    @property
    def program(self) -> Program | None:
        """The captured step; None before the first batch, and with graph.mode=hooks."""
        return None if self._step is None else self._step.program

    def step(self, micro_batches: Sequence[B], *, stop: bool = False, limits: Limits = NO_LIMITS) -> StepResult:
        """One update from this rank's `grad_accum` micro-batches.

        Args:
            stop: this rank wants to stop after this step; every rank learns it.
            limits: what loss and gradient norm may be; every rank gives equal ones.

        Raises:
            UsageError: another number of micro-batches, other shapes than the first, or the middle of a step; nothing
                was done.
            CaptureError: in the first step.
            NumbersError: loss or gradient norm is not finite or above its limit; nothing was updated, and the next
                batches may follow.
            DataError: the step has no valid token.
            CorruptionError: with `audit`: bits changed on their way or at rest; nothing was updated.
            LostRankError: another rank is gone.
        """
        self._refuse_within_a_step("step()")
        expected = self.plan.config.grad_accum
        if len(micro_batches) != expected:
            raise UsageError(f"step() got {len(micro_batches)} micro-batches; grad_accum={expected}: pass {expected}")
        batches = [self._moved(batch) for batch in micro_batches]
        self._ready(batches[0])
        return self._finish(batches, stop, limits)

    def forward_backward(self, batch: B) -> Tensor:
        """The next micro-batch of a step; `grad_accum` of them, then `optimizer_step()`: the bits of `step`.

        Returns:
            This rank's mean loss of the micro-batch, 0-dim.

        Raises:
            UsageError: one too many, or other shapes than the first; nothing was done.
            CaptureError, LostRankError: as `step`.
        """
        expected = self.plan.config.grad_accum
        if self._num_run == expected:
            raise UsageError(f"forward_backward() once more after grad_accum={expected}; call optimizer_step() first")
        batch = self._moved(batch)
        loss, count = self._ready(batch).forward_backward(self._num_run, batch)
        self._num_run += 1
        return loss / count

    def optimizer_step(self, *, stop: bool = False, limits: Limits = NO_LIMITS) -> StepResult:
        """The update of the micro-batches that went through `forward_backward`. Arguments and errors: as `step`."""
        expected = self.plan.config.grad_accum
        if self._num_run != expected:
            raise UsageError(
                f"optimizer_step() after {self._num_run} of grad_accum={expected} micro-batches; "
                "call forward_backward() for each"
            )
        return self._finish([], stop, limits)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[B]) -> tuple[float, float]:
        """Sum of the loss and what was counted, over the batches of all ranks, with the model in evaluation mode.

        Ranks may have different numbers of batches, of any shapes. Runs without compilation.
        """
        totals = torch.zeros(2, dtype=torch.float64, device=self._communicator.device)
        with self.whole_parameters(), evaluating(self.model):
            for batch in batches:
                loss, count = loss_and_count(self._loss_fn, self.model, self._moved(batch))
                totals[0] += loss
                totals[1] += count
        loss_sum, counted = self._communicator.sum(totals).tolist()
        return loss_sum, counted

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state_dict with whole, up-to-date parameters, copied to the CPU; every rank calls it."""
        with self.whole_parameters():
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Within the block the module's parameters are whole and up to date; every rank enters it."""
        with self.state.whole_parameters():
            yield

    def save(self, path: str, *, extra: Mapping[str, JsonValue] | None = None) -> None:
        """Publish the training state and `extra` as `path`/step-N; the newest three are kept. Every rank calls it.

        Trained parameters, optimizer states, the number of steps; buffers and frozen parameters are the module's own.
        `path` is a folder that all ranks see, or an fsspec URL.

        Raises:
            UsageError: in the middle of a step.
            StorageError: it could not be published; what was there before still is.
        """
        self._refuse_within_a_step("save()")
        if path not in self._savers:
            view = view_of(self.state, self.plan, self._communicator.rank)
            self._savers[path] = Saver(open_storage(path), view, self._communicator, say=self._say)
        self._savers[path].save(self.num_steps_done, dict(extra or {}))

    def load(self, path: str, *, accept: Accept = whatever_verifies) -> Manifest:
        """Go on from the newest checkpoint in `path` that verifies, written by any plan. Every rank calls it.

        `accept` raises where a sound checkpoint is not wanted; the `extra` of what is returned is what `save` got.

        Raises:
            UsageError: in the middle of a step.
            CheckpointError: there is none that verifies; the engine's state may be half replaced.
        """
        self._refuse_within_a_step("load()")
        view = view_of(self.state, self.plan, self._communicator.rank)
        manifest = load_newest(open_storage(path), view, self._communicator, accept=accept, say=self._say)
        self.state.adopt_masters()
        if self._step is not None:
            self._step.states_replaced()
        self.num_steps_done = manifest.step
        return manifest

    def close(self) -> None:
        """Let go of the model and of the process groups, so that they can be destroyed; the parameters stay."""
        if self._step is not None:
            self._step.close()
        self._communicator.close()

    def _refuse_within_a_step(self, call: str) -> None:
        if self._num_run:
            raise UsageError(
                f"{call} after {self._num_run} of grad_accum={self.plan.config.grad_accum} micro-batches went through "
                "forward_backward(); end that step with optimizer_step()"
            )

    def _moved(self, batch: B) -> B:
        return move(batch, self._communicator.device)

    def _ready(self, batch: B) -> Step:
        """The step, made from the first batch."""
        if self._step is None:
            arguments = (self.model, self._loss_fn, self.plan, self._communicator, self.state, self._optimizer)
            step = STEPS[self.plan.config.graph.mode](*arguments, example=batch, say=self._say)
            self.plan = replace(self.plan, memory=replace(self.plan.memory, activations=step.kept_bytes))
            self._step = step
        return self._step

    def _finish(self, micro_batches: Sequence[B], stop: bool, limits: Limits) -> StepResult:
        assert self._step is not None, "a step begins with a batch"
        config, step = self.plan.config, self.num_steps_done
        lr = learning_rate(config.optim, step, config.steps)
        totals = self._step.finish(micro_batches, lr=lr, step=step + 1, stop=stop, limits=limits)
        loss_sum, count, stops, squares = totals
        self._num_run = 0
        if not count:
            raise DataError(f"step {step}: no valid token on any rank; check the corpus and its loss mask")
        loss, norm = loss_sum / count, sqrt(squares) / count
        if complaint := limits.complaint(loss, norm):
            raise NumbersError(
                f"step {step}: {complaint}; the update was not applied; "
                "lower optim.lr, raise optim.warmup_ratio or lower optim.clip",
                complaint=complaint,
            )
        self.num_steps_done += 1
        return StepResult(loss, norm, lr, int(count), stops > 0)
