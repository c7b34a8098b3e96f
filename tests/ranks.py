"""Starts real ranks over gloo for tests: separate processes that meet in a file store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from internevo_engine.runtime.communicator import joined
from internevo_engine.runtime.launch import ALONE, Place


def run_ranks(
    function: Callable[..., Any], world: int, folder: Path, *arguments: Any, backend: str = "gloo"
) -> list[Any]:
    """Call function(place, *arguments) on every rank; returns what each rank returned (saved by torch)."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_rank, (world, folder, backend, function, arguments), nprocs=world)
    return [torch.load(folder / f"result{rank}.pt", weights_only=False) for rank in range(world)]


def _rank(
    rank: int, world: int, folder: Path, backend: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    place = ALONE if world == 1 else Place(rank, world, rank, world, f"file://{folder / 'store'}")
    with joined(place, backend):
        result = function(place, *arguments)
    torch.save(result, folder / f"result{rank}.pt")
