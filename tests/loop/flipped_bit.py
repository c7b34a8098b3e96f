"""Two runs of two ranks, of which one has a fault: a region of rank 1 flips one bit of one gradient, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from internevo_engine.config.schema import Config
from internevo_engine.graph.run import Runnable
from internevo_engine.graph.step_graph import Call, StepGraph
from internevo_engine.loop.train import train
from internevo_engine.runtime import graph_step
from internevo_engine.runtime.launch import Place

WORLD = 2


@dataclass(frozen=True)
class Fault:
    """Counted from 1, with one micro-batch a step."""

    step: int
    parameter: str


def train_ranks(config: Config, store: Path, fault: Fault | None = None) -> None:
    torch.multiprocessing.spawn(_rank, (config, store, fault), nprocs=WORLD)


def _rank(rank: int, config: Config, store: Path, fault: Fault | None) -> None:
    if fault is not None and rank == 1:
        graph_step.bind = _faulty(graph_step.bind, fault)
    train(config, Place(rank, WORLD, rank, WORLD, f"file://{store}"))


def _faulty(bind: Any, fault: Fault) -> Any:
    def bind_faulty(graph: StepGraph, call: Call, compiled: Runnable) -> Runnable:
        region, gradient = bind(graph, call, compiled), graph.gradients[fault.parameter]
        if gradient not in call.outputs:
            return region
        steps = iter(range(1, 1_000_000))

        def run(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = region(*operands)
            if next(steps) == fault.step:
                flip(outputs[call.outputs.index(gradient)])
            return outputs

        return run

    return bind_faulty


def flip(gradient: torch.Tensor) -> None:
    """The first bit of the mantissa of the largest element: what is added to it can't round that away."""
    flat = gradient.view(-1)
    flat.view(torch.int32)[flat.abs().argmax()] ^= 1 << 22
