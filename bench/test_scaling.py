"""How a step grows with ranks and parameters, and what planning it costs.

    python -m pytest bench/test_scaling.py [--long]

Weak scaling: one sequence a rank. Strong scaling: eight sequences, however many ranks. On a machine with fewer cores
than ranks the step can't scale; `tokens_per_s` then says what the engine adds to the sharing of cores.
"""

import os
from collections.abc import Callable
from statistics import median

import pytest
import torch

from bench.job import Contestant, Job, Run, worlds
from bench.workload import SIZES, Settings
from internevo_engine.data.packing import RandomCorpus
from internevo_engine.graph.capture import capture
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import parameters
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Program
from internevo_engine.runtime.launch import find_place
from internevo_engine.runtime.machine import probe_machine
from internevo_engine.schedule.step_program import modelled_costs, step_program

MACHINE, PLACE = probe_machine(), find_place(None, os.environ)
WORLDS = worlds(MACHINE, PLACE) if PLACE or MACHINE.gpus else [1, 2, 4, 8]
SEQUENCES = 8
LONG_SIZES = ("60M", "100M")
Replayed = Callable[..., None]


def measured_step(run: Run, replay: Replayed, settings: Settings, world: int) -> None:
    """Rounds are the steps of one run."""
    measured = run(Contestant("engine", "engine", settings), Job(world)).measured
    tokens = measured.rank_tokens * measured.world
    replay(
        measured.step_s,
        ranks=measured.world,
        parameters=measured.parameters,
        tokens=tokens,
        flops=measured.rank_flops * measured.world,
        bytes=measured.planned_bytes,
        tokens_per_s=round(tokens / median(measured.step_s)),
        resident_bytes=measured.resident_bytes,
    )


@pytest.mark.parametrize("world", WORLDS)
def test_weak(run: Run, replay: Replayed, world: int) -> None:
    measured_step(run, replay, Settings(warm_up=2, micro_batch=1, zero=(1, 1, world)), world)


@pytest.mark.parametrize("world", [world for world in WORLDS if world <= SEQUENCES])
def test_strong(run: Run, replay: Replayed, world: int) -> None:
    measured_step(run, replay, Settings(warm_up=2, micro_batch=SEQUENCES // world, zero=(1, 1, world)), world)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.long] if size in LONG_SIZES else []) for size in SIZES]
)
def test_parameters(run: Run, replay: Replayed, size: str) -> None:
    world = WORLDS[-1] if PLACE else min(2, WORLDS[-1])
    measured_step(run, replay, Settings(warm_up=2, size=size), world)


@pytest.fixture(scope="session")
def captured() -> Callable[[Settings], StepGraph]:
    """Capture by number of layers, once each, on meta tensors."""
    graphs: dict[int, StepGraph] = {}

    def once(settings: Settings) -> StepGraph:
        if settings.model.layers not in graphs:
            with torch.device("meta"):
                model = Decoder(settings.model, settings.seq_len)
            corpus = RandomCorpus(settings.model.vocab, seq_len=settings.seq_len, micro_batch=2, seed=0)
            graphs[settings.model.layers] = capture(model, token_loss, corpus.micro_batch(0, 0, 1))
        return graphs[settings.model.layers]

    return once


@pytest.mark.own_processes
@pytest.mark.parametrize(
    ("layers", "ranks", "bucket_mb"),
    [
        *((layers, 1024, 1.0) for layers in (8, 16, 32, 64, 128)),
        *((32, ranks, 1.0) for ranks in (1, 8, 64)),
        *((32, 1024, bucket_mb) for bucket_mb in (4.0, 16.0)),
    ],
)
def test_planning(
    benchmark, captured: Callable[[Settings], StepGraph], layers: int, ranks: int, bucket_mb: float
) -> None:
    """From config to checked Program, for ranks that need not be there; capture is not in it."""
    zero = (1, min(8, ranks), ranks)
    settings = Settings(layers=layers, bucket_mb=bucket_mb, zero=zero)
    graph, table = captured(settings), parameters(settings.model)

    def planned() -> Program:
        plan = make_plan(settings.config, table, Topology(ranks, min(8, ranks), "cuda"))
        return step_program(plan, graph, modelled_costs(plan))

    program = benchmark.pedantic(planned, rounds=5)
    count = len(program.instructions)
    assert benchmark.stats is not None
    us = round(1e6 * benchmark.stats["median"] / count, 2)
    benchmark.extra_info.update(
        layers=layers, ranks=ranks, buckets=len(program.buckets), instructions=count, us_per_instruction=us
    )
