"""The peers that PyTorch brings: each wraps the same module, and all share one step.

    module -> DistributedDataParallel, fully_shard, or nothing -> TorchPeer -> step

The step is what people write: forward and backward of each micro-batch, communication with the last one only, clip,
fused AdamW.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from bench.peers.peer import Peer, Rank
from bench.workload import OPTIM
from internevo_engine.data.packing import MicroBatch
from internevo_engine.models.loss import token_loss

ADAMW = {"lr": OPTIM.lr, "betas": OPTIM.betas, "eps": OPTIM.eps, "weight_decay": OPTIM.weight_decay, "fused": True}


@dataclass(frozen=True)
class TorchPeer:
    """A module that communicates in its backward pass."""

    run: Callable[..., torch.Tensor]
    """Tokens, positions, cu_seqlens to logits."""
    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    communicating: Callable[[bool], AbstractContextManager[object]]
    """The context of a backward pass after which gradients are, or are not, summed over the ranks."""

    def step(self, micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        """One update; the mean loss of this rank."""
        losses = [self._backward(batch, len(micro_batches), number) for number, batch in enumerate(micro_batches, 1)]
        torch.nn.utils.clip_grad_norm_(self.parameters, OPTIM.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).sum()

    def _backward(self, batch: MicroBatch, num_micro_batches: int, number: int) -> torch.Tensor:
        with self.communicating(number == num_micro_batches):
            loss_sum, count = token_loss(self.run, batch)
            loss = loss_sum / (count * num_micro_batches)
            loss.backward()
        return loss.detach()


def build_local(rank: Rank, *, compiled: bool) -> Peer:
    """Every rank alone: what computing costs without communication."""
    model = rank.settings.make_model(rank.device)
    run = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    parameters = list(model.parameters())
    return Peer(TorchPeer(run, parameters, torch.optim.AdamW(parameters, **ADAMW), lambda _: nullcontext()).step)


def build_ddp(rank: Rank, *, compiled: bool = False, sharded_optimizer: bool = False) -> Peer:
    """DistributedDataParallel; with ZeroRedundancyOptimizer each rank updates its share of the parameters."""
    ddp = DistributedDataParallel(rank.settings.make_model(rank.device), gradient_as_bucket_view=True)
    run = torch.compile(ddp, dynamic=False) if compiled else ddp
    parameters = list(ddp.parameters())
    if sharded_optimizer:
        optimizer = ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, parameters_as_bucket_view=True, **ADAMW)
    else:
        optimizer = torch.optim.AdamW(parameters, **ADAMW)
    return Peer(TorchPeer(run, parameters, optimizer, lambda last: nullcontext() if last else ddp.no_sync()).step)


def build_fsdp(
    rank: Rank, *, reshard: bool, hybrid: bool = False, reduce: torch.dtype = torch.float32, compiled: bool = False
) -> Peer:
    """fully_shard over the world, or with `hybrid` over each host; a layer is a unit, as the documentation advises.

    Args:
        reshard: free gathered parameters after forward.
        reduce: what gradients travel in.
        compiled: compile each layer.
    """
    model = rank.settings.make_model(rank.device)
    mesh, policy = _mesh(rank, hybrid=hybrid), MixedPrecisionPolicy(reduce_dtype=reduce)
    for layer in model.layers:
        if compiled:
            layer.compile(fullgraph=True, dynamic=False)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    module = fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    parameters = list(model.parameters())

    def communicating(last: bool) -> AbstractContextManager[object]:
        module.set_requires_gradient_sync(last)
        return nullcontext()

    return Peer(TorchPeer(model, parameters, torch.optim.AdamW(parameters, **ADAMW), communicating).step)


def _mesh(rank: Rank, *, hybrid: bool) -> DeviceMesh:
    hosts, per_host = rank.place.world // rank.place.local_world, rank.place.local_world
    if hybrid:
        return init_device_mesh(rank.device.type, (hosts, per_host), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(rank.device.type, (rank.place.world,))
