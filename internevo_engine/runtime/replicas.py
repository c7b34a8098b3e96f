"""runtime: do ranks that hold copies of the same slices hold the same bits? By checksums, never by the slices.

Two things are held in copies: the optimizer states of a slice by the replicas (R levels), and the parameters of a slice
by all ranks of equal P digits. Between steps of a captured Program a rank's own slice of the parameters is new, and
those of others are one update old, until the next step refreshes them; so what is compared is a slice as it was at the
last refresh: its checksum now, less that of the own part now, plus that of the own part then.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from internevo_engine.plan.levels import levels_of
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Level
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import checksums
from internevo_engine.runtime.sharded_state import ShardedState

HELD = ("parameters", "weights and moments")
"""Rows of a table of checksums."""


@dataclass(frozen=True)
class Disagreement:
    """Copies that differ."""

    what: str
    """Of HELD."""
    bucket: int
    ranks: tuple[int, ...]
    """In the minority; all holders where no majority says which are wrong."""
    holders: tuple[int, ...]


def own_parameters(state: ShardedState) -> torch.Tensor:
    """[buckets] int64: of the slices that this rank updates."""
    return _each(shard.master if shard.param is None else shard.param for shard in state.shards)


def sums_of_copies(state: ShardedState, plan: Plan, own_then: torch.Tensor) -> torch.Tensor:
    """[2, buckets] int64, as HELD: what all holders of a copy find equal.

    Args:
        own_then: `own_parameters` before the last step.
    """
    held = _each(state.held)
    if plan.config.graph.mode == "graph":  # hooks refresh at once
        held += own_then - own_parameters(state)
    states = [_each((shard.master, *shard.states)).sum() for shard in state.shards]
    return torch.stack([held, torch.stack(states)])


def compare(sums: torch.Tensor, plan: Plan, communicator: Communicator) -> list[Disagreement]:
    """What any rank's copies say of each other; every rank gets the same list."""
    table = torch.zeros(communicator.world, *sums.shape, dtype=torch.int64, device=sums.device)
    table[communicator.rank] = sums
    return list(disagreements(communicator.sum(table).cpu(), plan.levels))


def disagreements(table: torch.Tensor, levels: Sequence[Level]) -> Iterator[Disagreement]:
    """`compare` when all rows are there: [world, 2, buckets]."""
    cuts = (levels_of(levels, ["P"]), levels_of(levels, ["P", "G", "OS"]))
    for row, (what, cut) in enumerate(zip(HELD, cuts, strict=True)):
        holders: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for rank in range(len(table)):
            holders[tuple(level.digit(rank) for level in cut)].append(rank)
        for ranks in holders.values():
            values = table[ranks, row]  # [ranks, buckets]
            for bucket in (values != values[0]).any(0).nonzero().flatten().tolist():
                odd = _minority(values[:, bucket].tolist())
                yield Disagreement(what, bucket, tuple(ranks[i] for i in odd), tuple(ranks))


def _minority(values: Sequence[int]) -> list[int]:
    value, count = Counter(values).most_common(1)[0]
    is_majority = 2 * count > len(values)
    return [i for i, found in enumerate(values) if found != value or not is_majority]


def _each(tensors: Iterator[torch.Tensor] | Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([checksums(tensor) for tensor in tensors])
