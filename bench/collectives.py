"""One rank of a comparison of collectives: the engine's transfers and torch.distributed's, interleaved.

    torchrun --nproc-per-node 2 -m bench.collectives --mb 36 --rounds 5

Rank 0 prints a line of JSON: seconds of every round by row, from a barrier to the end on rank 0.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from bench.peers.measure import joined_rank
from bench.peers.peer import Rank
from bench.workload import Settings
from internevo_engine.program import Mode
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.launch import ALONE, find_place
from internevo_engine.runtime.transfers import Transfers, routes

Transfer = Callable[[Tensor, Tensor], object]
"""(result, own): flat, fp32."""


@dataclass(frozen=True)
class Row:
    """A way to do a collective."""

    kind: str
    """all_reduce, reduce_scatter, all_gather"""
    make: Callable[[], Transfer]

    def numels(self, whole: int, world: int) -> tuple[int, int]:
        """Elements of result and argument, of which the longer has `whole`."""
        part = whole // world
        return {"all_reduce": (whole, whole), "reduce_scatter": (part, whole), "all_gather": (whole, part)}[self.kind]

    def sent_bytes(self, whole: int, world: int, element_bytes: int = 4) -> int:
        """By each rank, if nothing is sent twice."""
        once = whole * element_bytes * (world - 1) // world
        return 2 * once if self.kind == "all_reduce" else once


def _torch_all_reduce() -> Transfer:
    return lambda result, own: dist.all_reduce(own)


def _torch_reduce_scatter() -> Transfer:
    return dist.reduce_scatter_tensor


def _torch_all_gather() -> Transfer:
    return dist.all_gather_into_tensor


def _ours(kind: str, mode: Mode = "fast", wire: torch.dtype = torch.float32, pieces: int = 1) -> Transfer:
    load_extension()
    assert dist.group.WORLD is not None
    transfers = Transfers(dist.group.WORLD.group_name, routes(dist.get_backend(), mode, wire, pieces), wire)
    return getattr(transfers, kind)


ROWS: Mapping[str, Row] = {
    "all_reduce torch": Row("all_reduce", _torch_all_reduce),
    "all_reduce engine": Row("all_reduce", partial(_ours, "all_reduce")),
    "all_reduce engine ordered": Row("all_reduce", partial(_ours, "all_reduce", "ordered")),
    "all_reduce engine bf16": Row("all_reduce", partial(_ours, "all_reduce", wire=torch.bfloat16)),
    "reduce_scatter torch": Row("reduce_scatter", _torch_reduce_scatter),
    "reduce_scatter engine": Row("reduce_scatter", partial(_ours, "reduce_scatter")),
    "reduce_scatter engine 64 pieces": Row("reduce_scatter", partial(_ours, "reduce_scatter", pieces=64)),
    "reduce_scatter engine bf16": Row("reduce_scatter", partial(_ours, "reduce_scatter", wire=torch.bfloat16)),
    "all_gather torch": Row("all_gather", _torch_all_gather),
    "all_gather engine": Row("all_gather", partial(_ours, "all_gather")),
    "all_gather engine 64 pieces": Row("all_gather", partial(_ours, "all_gather", pieces=64)),
}


@dataclass(frozen=True)
class Collectives:
    """What `measure` found."""

    world: int
    numel: int
    """Of the longer side of every transfer."""
    seconds: Mapping[str, list[float]]
    """By row."""


def measure(rank: Rank, num_bytes: int, rounds: int) -> Collectives:
    """Every row once, then all again; the first round warms up and is not counted."""
    world = rank.place.world
    numel = num_bytes // 4 // (64 * world) * 64 * world
    transfers = {name: _prepared(row, numel, world, rank.device) for name, row in ROWS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for _ in range(rounds + 1):
        for name, transfer in transfers.items():
            dist.barrier()
            begin = time.perf_counter()
            transfer()
            if rank.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - begin)
    return Collectives(world, numel, {name: times[1:] for name, times in seconds.items()})


def _prepared(row: Row, numel: int, world: int, device: torch.device) -> Callable[[], object]:
    result, own = (torch.ones(count, device=device) for count in row.numels(numel, world))
    return partial(row.make(), result, own)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.collectives", description=__doc__)
    parser.add_argument("--mb", type=float, default=36.0)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    place = find_place(None, os.environ) or ALONE
    with joined_rank(Settings(), place) as rank:
        found = measure(rank, int(arguments.mb * 1e6), arguments.rounds)
    if place.rank == 0:
        print(json.dumps(asdict(found)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
