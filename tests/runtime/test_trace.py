"""A recorded trace of real ranks: gradients leave during the backward pass, parameters come back during the forward.

What an instruction must wait for is true in every step; what the threads of a busy machine do, in one of a few.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from internevo_engine.program import Instruction, Program
from internevo_engine.runtime.graph_step import GraphStep
from internevo_engine.runtime.launch import Place
from tests.ranks import run_ranks
from tests.test_engine import Outcome, config, documents, engine_loop, engine_of, pack

STEPS = 8


@dataclass(frozen=True)
class Ran:
    """An instruction and when it ran, in ns."""

    what: Instruction
    start: int
    end: int


def traces(place: Place) -> tuple[Program, list[torch.Tensor]]:
    cfg = config(sizes=(1, 1, 2), micro_batch=16)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"layers": 8, "hidden": 64, "ffn": 96})})
    engine = engine_of(place, cfg)
    step = engine._step
    assert isinstance(step, GraphStep)
    found = []
    for number in range(STEPS):
        engine.step([pack([text for seed in range(16) for text in documents(16 * number + seed, 0)])])
        found.append(step.trace)
    return step.program, found


def spans(program: Program, trace: torch.Tensor) -> list[Ran]:
    return [Ran(what, *times) for what, times in zip(program.instructions, trace.tolist(), strict=True)]


def calls(ran: list[Ran], phase: str) -> list[Ran]:
    return [each for each in ran if each.what.kind == "compute" and each.what.what.startswith(phase)]


def reduces_before_half_of_backward(ran: list[Ran]) -> bool:
    backward = calls(ran, "bwd")
    first = min(each.start for each in ran if each.what.kind == "reduce")
    done = sum(min(each.end, first) - min(each.start, first) for each in backward)
    return done < sum(each.end - each.start for each in backward) / 2


def refreshes_under_the_forward(ran: list[Ran]) -> bool:
    first = calls(ran, "fwd")[0]
    return any(each.end > first.start for each in ran if each.what.kind == "refresh")


def test_communication_runs_beside_computation(tmp_path: Path) -> None:
    for program, found in run_ranks(traces, 2, tmp_path):
        steps = [spans(program, trace) for trace in found]
        for ran in steps:
            assert calls(ran, "bwd")
            assert all(ran[number].end <= each.start for each in ran for number in each.what.after)
        assert any(reduces_before_half_of_backward(ran) for ran in steps)
        assert any(refreshes_under_the_forward(ran) for ran in steps[1:])


def train_both(place: Place) -> list[Outcome]:
    keys = {"sizes": (1, 1, 2), "grad_accum": 2}
    return [engine_loop(place, config(**keys, overlap=overlap), steps=5) for overlap in (True, False)]


def test_without_overlap_the_bits_are_the_same(tmp_path: Path) -> None:
    beside, one_by_one = run_ranks(train_both, 2, tmp_path)[0]
    assert beside.losses == one_by_one.losses
    assert beside.norms == one_by_one.norms
    assert all(torch.equal(one_by_one.weights[name], weight) for name, weight in beside.weights.items())
