"""runtime: graph.mode=hooks, a step of eager autograd. For models that can't be captured whole, and for bisection.

Forward and backward fill gradient buckets (csrc/runtime/grad_buckets.h), which are all-reduced while the backward pass
goes on; then every rank updates its slice of the optimizer states and the slices are gathered. Parameters and gradients
are whole on every rank: the plan refuses other sizes in this mode.
"""

from collections.abc import Callable, Sequence
from math import sqrt

import torch

from internevo_engine.config.schema import OptimConfig
from internevo_engine.graph.loss import LossFunction, loss_and_count
from internevo_engine.plan.levels import cut, levels_of
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import GradBuckets, square_sum
from internevo_engine.runtime.limits import Limits
from internevo_engine.runtime.optimizers import Optimizer
from internevo_engine.runtime.sharded_state import ShardedState


def clipped_mean(optim: OptimConfig, count: float, squares: float) -> float:
    """What makes the summed gradient its clipped mean, as torch.nn.utils.clip_grad_norm_ clips."""
    norm = sqrt(squares) / count
    return (min(1.0, optim.clip / (norm + 1e-6)) if optim.clip else 1.0) / count


class HooksStep:
    """Updates of one model; the same calls on every rank."""

    program = None
    kept_bytes = 0  # autograd does not tell

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
        self._model, self._loss_fn, self._communicator = model, loss_fn, communicator
        self._config, self._state, self._optimizer = plan.config, state, optimizer
        owned = levels_of(plan.levels, ["OS"])
        self._grads = [flat.narrow(0, *cut(communicator.rank, owned, flat.numel())) for flat in state.sums]
        self._replicas = plan.topology.world // plan.sizes.optim
        self._buckets = _grad_buckets(state, plan, communicator)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._hooks = [p.register_post_accumulate_grad_hook(self._hook(i)) for i, p in enumerate(parameters)]
        self._totals = torch.zeros(4, dtype=torch.float64, device=communicator.device)

    def forward_backward(self, number: int, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sum and count of micro-batch `number` on this rank, 0-dim; its gradients are on their way."""
        loss, count = loss_and_count(self._loss_fn, self._model, batch)
        self._buckets.begin(last=number + 1 == self._config.grad_accum)
        loss.backward()
        if number == 0:
            self._totals.zero_()
        self._totals[0] += loss.detach()
        self._totals[1] += count
        return loss.detach(), count

    def finish(
        self, micro_batches: Sequence[object], *, lr: float, step: int, stop: bool, limits: Limits
    ) -> list[float]:
        """The rest of the step: these micro-batches, then the update.

        Returns:
            Loss sum, count, stop requests and squared gradient norm, over all micro-batches and ranks. Nothing is
            updated where these are not finite or above the limits, or the count is 0.
        """
        for number, batch in enumerate(micro_batches, self._config.grad_accum - len(micro_batches)):
            self.forward_backward(number, batch)
        with self._communicator.peers_named():
            self._buckets.finish()
        self._totals[2] = stop
        for grad in self._grads:
            self._totals[3] += square_sum(grad) / self._replicas
        summed = self._communicator.sum(self._totals).tolist()
        loss_sum, count, _, squares = summed
        if count and not limits.complaint(loss_sum / count, sqrt(squares) / count):
            self._update(clipped_mean(self._config.optim, count, squares), lr, step)
        return summed

    def states_replaced(self) -> None:
        """Nothing is kept of them."""

    @torch.no_grad()
    def _update(self, scale: float, lr: float, step: int) -> None:
        grad_scale = torch.tensor([scale], dtype=torch.float32, device=self._communicator.device)
        for shard, grad in zip(self._state.shards, self._grads, strict=True):
            self._optimizer.update(shard, grad, self._config.optim, grad_scale, lr, step)
        self._state.refresh()

    def close(self) -> None:
        """Let go of the model and of the process group."""
        for hook in self._hooks:
            hook.remove()
        del self._buckets

    def _hook(self, index: int) -> Callable[[torch.Tensor], None]:
        def add(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            self._buckets.add(index, parameter.grad)
            parameter.grad = None

        return add


def _grad_buckets(state: ShardedState, plan: Plan, communicator: Communicator) -> GradBuckets:
    bucket_of = {param: number for number, bucket in enumerate(plan.buckets) for param in bucket.params}
    offset_of = {p: o for bucket in plan.buckets for p, o in zip(bucket.params, bucket.offsets, strict=True)}
    order = [index for index, param in enumerate(plan.params) if param.trained]
    return GradBuckets(
        state.sums,
        bucket_of_param=[bucket_of[index] for index in order],
        offset_of_param=[offset_of[index] for index in order],
        numel_of_param=[plan.params[index].numel for index in order],
        group_name=communicator.group_names.get(("optimizer", "all"), ""),
        overlap=plan.config.comm.overlap,
    )
