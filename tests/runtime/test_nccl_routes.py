"""NCCL's routes, over gloo with a recording stand-in: one call of the backend a transfer, lanes apart.

That a lane on CUDA waits with its stream and not on the host is for the streams to show; here it is that no lane ever
waits for a collective of another, unless the Program says so.
"""

from pathlib import Path

import torch

from internevo_engine.program import Lane, Program
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.transfers import routes
from tests.ranks import run_ranks
from tests.runtime.collectives import Collective, recorded
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, program

Calls = dict[tuple[Lane, str], list[Collective]]


def nccl_routes(step_program: Program, plan: Plan) -> dict[str, object]:
    return {"routes": {level.name: routes("nccl", plan.mode, torch.float32) for level in step_program.levels}}


def calls_of_steps(place: Place, plans: list[Plan]) -> list[tuple[Program, Calls, int]]:
    return [calls_of_a_step(place, plan) for plan in plans]


def calls_of_a_step(place: Place, plan: Plan) -> tuple[Program, Calls, int]:
    """What each group was asked for in a step, and the number of groups."""
    step_program = program(plan, place.world)
    bindings = bind(step_program, plan, place, **nccl_routes(step_program, plan))
    engine = Executor(step_program, bindings, OPTIM)
    with recorded() as recorder:
        engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
    calls = {where: recorder.by_group[group] for where, group in bindings.groups.items()}
    return step_program, calls, len(set(bindings.groups.values()))


def calls_expected(step_program: Program, lane: str, level_name: str) -> list[tuple[str, int]]:
    """One call of the backend for each transfer of a lane, in the order of the Program."""
    replicas = {level.name for level in step_program.levels if level.state == "R"}
    names = {"gather": "all_gather", "refresh": "all_gather", "reduce": "reduce_scatter", "norm": "all_reduce"}
    here = [i for i in step_program.instructions if (i.lane, i.level) == (lane, level_name)]
    return [("all_reduce" if i.level in replicas else names[i.kind], i.bytes) for i in here]


def test_each_transfer_is_one_call_of_its_own_group_in_program_order(tmp_path: Path) -> None:
    plans = [Plan(groups, mode="fast") for groups in ((1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2))]
    for of_rank in run_ranks(calls_of_steps, 2, tmp_path, plans):
        for plan, (step_program, calls, num_groups) in zip(plans, of_rank, strict=True):
            assert num_groups == len(calls), "two lanes share a group"
            for (lane, level), found in calls.items():
                assert [(each.name, each.sent) for each in found] == calls_expected(step_program, lane, level)
            is_sharded = plan.groups != (1, 1, 1)
            by_lane = {lane: {each.name for each in found} for (lane, _), found in calls.items()}
            assert by_lane["near"] == {"reduce_scatter" if is_sharded else "all_reduce"}
            assert by_lane.get("gather") == ({"all_gather"} if is_sharded else None)


def later_than(step_program: Program, first: int) -> set[int]:
    """Instructions that the Program starts only after `first` has ended."""
    later = {first}
    last_of_lane: dict[str, int] = {}
    for number, i in enumerate(step_program.instructions):
        if later.intersection([*i.after, last_of_lane.get(i.lane, -1)]):
            later.add(number)
        last_of_lane[i.lane] = number
    return later - {first}


def posted_beside_a_held_reduce(place: Place, plan: Plan) -> bool:
    """A step whose first reduce ends only when the last gather that need not wait for it was posted."""
    step_program = program(plan, place.world)
    bindings = bind(step_program, plan, place, **nccl_routes(step_program, plan))
    engine = Executor(step_program, bindings, OPTIM)
    gathers = [n for n, i in enumerate(step_program.instructions) if i.lane == "gather" and i.level]
    first = next(n for n, i in enumerate(step_program.instructions) if i.kind == "reduce")
    free = [n for n in gathers if n not in later_than(step_program, first)]
    assert any(n > first for n in free), "the Program leaves nothing to overlap"
    near, gather = (bindings.groups[lane, step_program.instructions[first].level] for lane in ("near", "gather"))
    with recorded() as recorder:
        recorder.held_group = near

        def release(group: str, _: Collective) -> None:
            if group == gather and len(recorder.by_group[group]) == len(free):
                recorder.released.set()

        recorder.on_post = release
        engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
    return recorder.released.is_set()


def test_gathers_are_posted_while_a_reduce_is_in_flight(tmp_path: Path) -> None:
    assert run_ranks(posted_beside_a_held_reduce, 2, tmp_path, Plan((2, 2, 2), mode="fast")) == [True, True]
