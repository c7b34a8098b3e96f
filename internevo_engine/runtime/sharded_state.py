"""runtime: the three states of one rank as flat buffers, each cut along its own levels: Hybrid-ZeRO in memory.

They are the persistent buffers of the Program: `param[b]` (or `pshard[b]`, where parameters are sharded), `gsum[b]` and
`os[b]`. Parameters become views of flat buffers, so that one kernel updates a bucket and one collective moves it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch

from internevo_engine._core import Bucket
from internevo_engine.plan.levels import cut, is_first_replica, levels_of
from internevo_engine.plan.plan import Plan
from internevo_engine.plan.reduction import num_sums
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import checksums
from internevo_engine.runtime.optimizers import Optimizer, Shard


@dataclass(frozen=True)
class Checksums:
    """Bits of fp32 numbers, summed as integers over all ranks; one sum for each bucket."""

    gradients: list[int]
    weights: list[int]


class ShardedState:
    """P in the compute dtype, G in fp32, OS as fp32 master and moments, of one rank."""

    def __init__(
        self, parameters: Sequence[torch.nn.Parameter], plan: Plan, communicator: Communicator, optimizer: Optimizer
    ) -> None:
        """Take over `parameters`, in the order of plan.params, whole; every rank gets rank 0's."""
        self._parameters, self._plan, self._communicator = tuple(parameters), plan, communicator
        self._param_levels = levels_of(plan.levels, ["P"])
        self._refresh_levels = levels_of(plan.levels, ["G", "OS"])
        self.held = [self._take_over(bucket) for bucket in plan.buckets]
        """param[b] where parameters are whole, else pshard[b]."""
        *self.partial_sums, self.sums = self._zero_sums(parameters[0].device)
        """gsum[b]; before it, for each j, gsum[b].j"""
        trained = plan.trained_buckets
        self.shards = [
            self._shard(held, bucket, optimizer)
            for held, bucket in zip(self.held[: len(trained)], trained, strict=True)
        ]
        """Of each trained bucket: os[b], and the slice of the parameter that an update writes."""

    @property
    def num_bytes(self) -> int:
        """Bytes of P, G and OS on this rank, over live storages; a master that is the parameter itself counts once."""
        storages = {}
        states = (t for shard in self.shards for t in (shard.master, *shard.states))
        for tensor in chain(self.held, *self.partial_sums, self.sums, states):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return sum(storages.values())

    def checksums(self) -> Checksums:
        """Of gradients and weights as the last step has left them; a collective.

        Equal bits give equal numbers, for every plan and world; but in mode `fast` a gradient is what each rank has
        added up, not yet the sum of all ranks.
        """
        speaks = is_first_replica(self._communicator.rank, self._plan.levels)
        gradients = _bit_sums(self.sums) * (speaks or self._plan.mode == "fast")
        weights = _bit_sums([shard.master for shard in self.shards]) * speaks
        return Checksums(*self._communicator.sum(torch.stack([gradients, weights])).tolist())

    @torch.no_grad()
    def adopt_masters(self) -> None:
        """The masters were replaced on every rank: write them into the parameters of all who hold them."""
        for shard in self.shards:
            if shard.param is not None:
                shard.param.copy_(shard.master)
        self.refresh()

    def refresh(self) -> None:
        """Bring the last update's slices to everyone who holds the parameter; the next step would do it."""
        for held, _ in zip(self.held, self.shards, strict=False):  # frozen ones are not updated
            self._communicator.fill(held, self._refresh_levels)

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Within the block the module's parameters are whole and up to date on every rank."""
        self.refresh()
        if not self._param_levels:
            yield
            return
        for held, bucket in zip(self.held, self._plan.buckets, strict=True):
            flat = torch.empty(bucket.numel, dtype=held.dtype, device=held.device)
            offset, length = cut(self._communicator.rank, self._param_levels, bucket.numel)
            flat.narrow(0, offset, length).copy_(held)
            self._communicator.fill(flat, self._param_levels)
            self._show(flat, bucket)
        try:
            yield
        finally:
            self._hide()

    def _take_over(self, bucket: Bucket) -> torch.Tensor:
        first = self._parameters[0]
        flat = torch.zeros(bucket.numel, dtype=first.dtype, device=first.device)
        for index, offset in zip(bucket.params, bucket.offsets, strict=True):
            parameter = self._parameters[index]
            flat.narrow(0, offset, parameter.numel()).copy_(parameter.detach().flatten())
        self._communicator.broadcast(flat)
        if not self._param_levels:
            self._show(flat, bucket)
            return flat
        for index in bucket.params:
            self._parameters[index].data = first.new_empty(0)
        offset, length = cut(self._communicator.rank, self._param_levels, bucket.numel)
        return flat.narrow(0, offset, length).clone()

    def _zero_sums(self, device: torch.device) -> list[list[torch.Tensor]]:
        plan = self._plan
        shards, buckets = plan.sizes.summed(plan.mode), plan.trained_buckets
        return [
            [torch.zeros(bucket.numel // shards, dtype=torch.float32, device=device) for bucket in buckets]
            for _ in range(num_sums(plan.mode, plan.config.grad_accum))
        ]

    def _show(self, flat: torch.Tensor, bucket: Bucket) -> None:
        for index, offset in zip(bucket.params, bucket.offsets, strict=True):
            shape = self._plan.params[index].shape
            self._parameters[index].data = flat.narrow(0, offset, self._plan.params[index].numel).view(shape)

    def _hide(self) -> None:
        for parameter in self._parameters:
            parameter.data = parameter.new_empty(0)

    def _shard(self, held: torch.Tensor, bucket: Bucket, optimizer: Optimizer) -> Shard:
        rank = self._communicator.rank
        own = held.narrow(0, *cut(rank, self._refresh_levels, held.numel()))
        begin, length = cut(rank, [*self._param_levels, *self._refresh_levels], bucket.numel)
        is_own_master = own.dtype == torch.float32
        master = own if is_own_master else own.float()
        states = tuple(torch.zeros_like(master) for _ in optimizer.states)
        decayed = min(max(bucket.decayed_numel - begin, 0), length)
        return Shard(master, states, None if is_own_master else own, decayed)


def _bit_sums(flats: Sequence[torch.Tensor]) -> torch.Tensor:
    """[buckets] int64"""
    return torch.cat([checksums(flat) for flat in flats])
