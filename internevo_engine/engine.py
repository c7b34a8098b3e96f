"""Engine: one training step on packed micro-batches, for the loop and for people with a loop of their own.

Forward and backward fill gradient buckets (csrc/runtime), which are reduced while the backward pass goes on; then
one scalar sum over the ranks gives loss, token count and gradient norm, and one fused pass a bucket (csrc/kernels)
clips, decays and updates. The scheduler will take over the moments; buckets and kernels stay.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Generic, Protocol, Self, TypeVar

import torch

from internevo_engine.errors import DataError, NumbersError
from internevo_engine.optim.schedules import learning_rate
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import GradBuckets, load_extension, square_sum
from internevo_engine.runtime.flat_state import FlatState
from internevo_engine.runtime.optimizers import OPTIMIZERS


class Batch(Protocol):
    """Whatever the loss function takes; the engine only moves it to the device."""

    def to(self, device: torch.device) -> Self: ...


B = TypeVar("B", bound=Batch)
LossFunction = Callable[[torch.nn.Module, B], tuple[torch.Tensor, torch.Tensor]]
"""(model, batch) -> (sum of the loss over valid tokens, number of valid tokens), both 0-dim."""


@dataclass(frozen=True)
class StepResult:
    """What one update did, summed over all micro-batches and ranks."""

    loss: float
    """Mean over valid tokens, in nats."""
    grad_norm: float
    """Global norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """Valid tokens."""
    stop: bool
    """Some rank asked to stop after this step."""


class Engine(Generic[B]):
    """Trains `model` by the plan. All ranks call the same methods in the same order."""

    def __init__(
        self, model: torch.nn.Module, loss_fn: LossFunction[B], plan: Plan, communicator: Communicator
    ) -> None:
        load_extension()
        self.model, self.plan = model, plan
        self.num_steps_done = 0
        self._loss_fn, self._communicator = loss_fn, communicator
        self._optim = plan.config.optim
        self._optimizer = OPTIMIZERS[self._optim.name]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.state = FlatState(parameters, plan, communicator, self._optimizer)
        self._buckets = _grad_buckets(self.state, plan, communicator)
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(i)) for i, p in enumerate(parameters)]

    def step(self, micro_batches: Sequence[B], *, stop: bool = False) -> StepResult:
        """One update from this rank's micro-batches.

        Args:
            stop: this rank wants to stop after this step; every rank learns it.

        Raises:
            NumbersError: loss or gradient norm is not finite; nothing was updated.
            DataError: the step has no valid token.
            LostRankError: another rank is gone.
        """
        totals = torch.zeros(4, dtype=torch.float64, device=self._communicator.device)
        totals[2] = stop
        for number, batch in enumerate(micro_batches, start=1):
            self._buckets.begin(last=number == len(micro_batches))
            loss, count = self._forward_backward(batch)
            totals[0] += loss
            totals[1] += count
        with self._communicator.peers_named():
            self._buckets.finish()
        replicas = self._communicator.world // self._communicator.optim_group_size
        for shard in self.state.shards:
            totals[3] += square_sum(shard.grad) / replicas
        loss_sum, tokens, stops, squares = self._communicator.sum(totals).tolist()
        return self._update(loss_sum, tokens, squares, stop=stops > 0)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[B]) -> tuple[float, int]:
        """Sum of the loss in nats and number of valid tokens, over the batches of all ranks."""
        totals = torch.zeros(2, dtype=torch.float64, device=self._communicator.device)
        for batch in batches:
            loss, count = self._loss_fn(self.model, batch.to(self._communicator.device))
            totals[0] += loss
            totals[1] += count
        loss_sum, tokens = self._communicator.sum(totals).tolist()
        return loss_sum, int(tokens)

    def close(self) -> None:
        """Let go of the model and of the process groups, so that they can be destroyed; the parameters stay."""
        for hook in self._hooks:
            hook.remove()
        del self._buckets
        self._communicator.close()

    def _forward_backward(self, batch: B) -> tuple[torch.Tensor, torch.Tensor]:
        loss, count = self._loss_fn(self.model, batch.to(self._communicator.device))
        loss.backward()
        return loss.detach(), count

    @torch.no_grad()
    def _update(self, loss_sum: float, tokens: float, squares: float, *, stop: bool) -> StepResult:
        step = self.num_steps_done
        if not tokens:
            raise DataError(f"step {step}: no valid token on any rank; check the corpus and its loss mask")
        loss, norm = loss_sum / tokens, sqrt(squares) / tokens if squares >= 0 else squares
        if not (isfinite(loss) and isfinite(norm)):
            raise NumbersError(
                f"step {step}: loss is {loss}, gradient norm {norm}; the update was not applied; "
                "lower optim.lr, raise optim.warmup_ratio or lower optim.clip"
            )
        clip_factor = min(1.0, self._optim.clip / (norm + 1e-6)) if self._optim.clip else 1.0
        grad_scale = torch.tensor([clip_factor / tokens], dtype=torch.float32, device=self._communicator.device)
        lr = learning_rate(self._optim, step, self.plan.config.run.steps)
        for flat, shard in zip(self.state.params, self.state.shards, strict=True):
            self._optimizer.update(shard, self._optim, grad_scale, lr, step + 1)
            self._communicator.gather_shards(flat)
        self.num_steps_done += 1
        return StepResult(loss, norm, lr, int(tokens), stop)

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def add(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self._buckets.add(index, parameter.grad)
            parameter.grad = None

        return add


def _grad_buckets(state: FlatState, plan: Plan, communicator: Communicator) -> GradBuckets:
    bucket_of = {param: number for number, bucket in enumerate(plan.buckets) for param in bucket.params}
    offset_of = {p: o for bucket in plan.buckets for p, o in zip(bucket.params, bucket.offsets, strict=True)}
    order = range(len(plan.params))
    return GradBuckets(
        state.grads,
        bucket_of_param=[bucket_of[index] for index in order],
        offset_of_param=[offset_of[index] for index in order],
        numel_of_param=[param.numel for param in plan.params],
        group_name=communicator.world_group_name,
        overlap=plan.config.comm.overlap,
    )
