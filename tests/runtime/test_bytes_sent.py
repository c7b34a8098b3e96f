"""What a Program says it sends is what leaves: counted at the door of the process groups, equal as integers."""

from pathlib import Path

import pytest
import torch

from internevo_engine.program import Program
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.transfers import routes
from tests.ranks import run_ranks
from tests.runtime.collectives import recorded
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, program

Counted = dict[tuple[str, str], int]
BF16 = torch.bfloat16


def plans_of(world: int) -> list[Plan]:
    all_sizes = {
        2: [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)],
        3: [(1, 1, 1), (1, 1, 3)],
        4: [(1, 1, 1), (1, 1, 4), (1, 2, 4), (4, 4, 4)],
    }[world]
    changes = ({"mode": "fast"}, {"mode": "ordered"}, {"mode": "fast", "wire": BF16}, {"dtype": BF16, "wire": BF16})
    return [Plan(sizes, pieces=16, **change) for sizes in all_sizes for change in changes]  # pyright: ignore


def bytes_of_a_step(place: Place, plans: list[Plan]) -> list[tuple[Program, Counted]]:
    results = []
    for plan in plans:
        step_program = program(plan, place.world)
        table = routes("gloo", plan.mode, plan.wire, plan.pieces)
        bindings = bind(step_program, plan, place, routes={level.name: table for level in step_program.levels})
        engine = Executor(step_program, bindings, OPTIM)
        with recorded() as recorder:
            engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
        by_group = recorder.by_group
        counted = {where: sum(each.sent for each in by_group[group]) for where, group in bindings.groups.items()}
        results.append((step_program, counted))
        engine.close()
    return results


@pytest.mark.parametrize("world", [2, 3, 4])
def test_bytes_that_leave_are_those_of_the_program(tmp_path: Path, world: int) -> None:
    plans = plans_of(world)
    for of_rank in run_ranks(bytes_of_a_step, world, tmp_path, plans):
        for plan, (step_program, counted) in zip(plans, of_rank, strict=True):
            said: Counted = dict.fromkeys(counted, 0)
            for i in step_program.instructions:
                if i.level:
                    said[i.lane, i.level] += i.bytes
            assert counted == said, plan
            assert all(counted.values())


@pytest.mark.parametrize("groups", [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)])
def test_a_wire_of_bf16_halves_what_reductions_send(groups: tuple[int, int, int]) -> None:
    wide, narrow = (program(Plan(groups, mode="fast", wire=wire), 2) for wire in (torch.float32, BF16))
    assert [i.bytes for i in wide.instructions if i.kind == "reduce"] == [
        2 * i.bytes for i in narrow.instructions if i.kind == "reduce"
    ]
