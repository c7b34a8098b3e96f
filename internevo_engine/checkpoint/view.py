"""checkpoint: a sharded training state as stretches of parameters. The first step of saving and loading.

A stretch is (parameter, flat offset, length): where the ranks and buckets of any plan meet. What a rank owns of the
optimizer states becomes a list of them; snapshot.py copies and load.py fills the tensors behind it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from internevo_engine._core import Bucket
from internevo_engine.checkpoint.manifest import PlanEntry
from internevo_engine.plan.levels import is_first_replica, owned_slice
from internevo_engine.plan.params import Param
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.optimizers import OPTIMIZERS, Shard
from internevo_engine.runtime.sharded_state import ShardedState

MASTER = "master"
"""The state that is the weights."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive elements of one flattened parameter, in all its states."""

    param: int
    """Index into ShardedView.params."""
    offset: int
    """Of the first element."""
    tensors: tuple[torch.Tensor, ...]
    """Flat fp32 views of the live states, equally long, in the order of ShardedView.states."""

    @property
    def length(self) -> int:
        return self.tensors[0].numel()


@dataclass(frozen=True)
class ShardedView:
    """What one rank owns of a training state: all that a checkpoint knows of the engine."""

    params: tuple[Param, ...]
    """The trained ones: what is frozen is as it was."""
    states: tuple[str, ...]
    """Names of the fp32 states; MASTER first. Parameters in the compute dtype follow from it and aren't kept."""
    stretches: tuple[Stretch, ...]
    is_writer: bool
    """False on all but the first of the replicas, which own the same stretches."""
    plan: PlanEntry


def view_of(state: ShardedState, plan: Plan, rank: int) -> ShardedView:
    """Look at the optimizer states of this rank; nothing is copied."""
    trained = [index for index, param in enumerate(plan.params) if param.trained]
    row_of = {index: row for row, index in enumerate(trained)}
    slices = [
        stretch
        for bucket, shard in zip(plan.trained_buckets, state.shards, strict=True)
        for stretch in _stretches(bucket, shard, plan, rank, row_of)
    ]
    sizes = plan.sizes
    entry = PlanEntry(
        world=plan.topology.world, param=sizes.param, grad=sizes.grad, optim=sizes.optim, dtype=plan.dtype
    )
    states = (MASTER, *OPTIMIZERS[plan.config.optim.name].states)
    params = tuple(plan.params[index] for index in trained)
    return ShardedView(params, states, tuple(slices), is_first_replica(rank, plan.levels), entry)


def _stretches(bucket: Bucket, shard: Shard, plan: Plan, rank: int, row_of: Mapping[int, int]) -> Iterator[Stretch]:
    """The parts of the bucket's parameters inside this rank's slice; the padding between them is nobody's."""
    begin, length = owned_slice(rank, plan.levels, "OS", bucket.numel)
    for index, offset in zip(bucket.params, bucket.offsets, strict=True):
        first = max(begin, offset)
        last = min(begin + length, offset + plan.params[index].numel)
        if first < last:
            tensors = (shard.master, *shard.states)
            yield Stretch(
                row_of[index], first - offset, tuple(t.narrow(0, first - begin, last - first) for t in tensors)
            )
