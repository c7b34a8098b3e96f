"""runtime: parameters, gradients and optimizer states as flat buckets, in the layout that the plan decided.

Parameters become views of flat buffers, so that one kernel updates a bucket and one collective moves it.
"""

from collections.abc import Sequence

import torch

from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.optimizers import Optimizer, Shard


class FlatState:
    """The three states on one rank: P and G whole, OS this rank's slice."""

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], plan: Plan, communicator: Communicator, optimizer: Optimizer
    ) -> None:
        """Move `parameters` (in the order of plan.params) into flat buffers of their own dtype and device."""
        first = parameters[0]
        self.params = [torch.zeros(bucket.numel, dtype=first.dtype, device=first.device) for bucket in plan.buckets]
        for flat, bucket in zip(self.params, plan.buckets, strict=True):
            for index, offset in zip(bucket.params, bucket.offsets, strict=True):
                _move_into(flat, offset, parameters[index])
        self.grads = [torch.zeros(bucket.numel, dtype=torch.float32, device=first.device) for bucket in plan.buckets]
        self.shards = [
            _shard(param, grad, bucket.decayed_numel, communicator, optimizer)
            for param, grad, bucket in zip(self.params, self.grads, plan.buckets, strict=True)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of P, G and OS on this rank; a master that is the parameter itself counts once."""
        tensors = [*self.params, *self.grads]
        for shard in self.shards:
            tensors += [*shard.states, *([shard.master] if shard.param is not None else [])]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _move_into(flat: torch.Tensor, offset: int, parameter: torch.nn.Parameter) -> None:
    view = flat.narrow(0, offset, parameter.numel()).view_as(parameter)
    view.copy_(parameter.detach())
    parameter.data = view


def _shard(
    param: torch.Tensor, grad: torch.Tensor, decayed_numel: int, communicator: Communicator, optimizer: Optimizer
) -> Shard:
    own = communicator.own_slice(param)
    is_own_master = own.dtype == torch.float32
    master = own if is_own_master else own.float()
    states = tuple(torch.zeros_like(master) for _ in optimizer.states)
    decayed_here = min(max(decayed_numel - communicator.optim_rank * own.numel(), 0), own.numel())
    return Shard(master, states, communicator.own_slice(grad), None if is_own_master else own, decayed_here)
