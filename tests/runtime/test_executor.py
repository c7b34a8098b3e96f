"""The executor: the bits of its interpreter and of every plan, near torch's AdamW, in the declared memory and order."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo_engine.program import Mode, Program
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.interpreter import Interpreter
from internevo_engine.runtime.launch import Place
from tests.ranks import run_ranks
from tests.runtime import linear_step
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, program, whole_states

STEPS = 3
PLANS = {
    1: [(1, 1, 1)],
    2: [(1, 1, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2)],
    3: [(1, 1, 1), (1, 1, 3), (3, 3, 3)],
    4: [(1, 1, 1), (1, 1, 4), (1, 4, 4), (4, 4, 4), (1, 2, 4), (2, 4, 4), (2, 2, 2)],
}
FROZEN = (2, 3)
"""The layer in the middle: its gradients are written by no one, and pass through it all the same."""
Outcome = dict[str, Any]


def train(runner: type[Executor] | type[Interpreter], place: Place, plan: Plan) -> Outcome:
    """Three steps: the totals of each, all states at the end, and the parameters as this rank holds them."""
    step_program = program(plan, place.world)
    bindings = bind(step_program, plan, place)
    engine = runner(step_program, bindings, OPTIM)
    totals = [
        engine.step(batches_of(step, place.rank, place.world, plan), lr=OPTIM.lr, step=step + 1, stop=step == 1)
        for step in range(STEPS)
    ]
    held = {name: tensor.clone() for name, tensor in bindings.buffers.items() if name.startswith("p")}
    states = whole_states(step_program, plan, place, bindings)
    return {"totals": torch.stack(totals), "states": states, "held": held}


def train_twice(place: Place, plans: list[Plan]) -> list[tuple[Outcome, Outcome]]:
    return [(train(Executor, place, plan), train(Interpreter, place, plan)) for plan in plans]


def assert_equal_bits(found: Outcome, expected: Outcome, parts: tuple[str, ...] = ("totals", "states", "held")) -> None:
    for part in parts:
        for name, tensor in expected[part].items() if part != "totals" else [("", expected[part])]:
            other = found[part] if part == "totals" else found[part][name]
            assert torch.equal(other, tensor), f"{part} {name}\n{other}\n{tensor}"


def plans_of(world: int) -> list[Plan]:
    """Every plan in order, one of them also without overlap, one with sums in a tree; every plan fast; one in bf16."""
    ordered = [Plan(groups) for groups in PLANS[world]]
    invariant = [Plan(groups, mode="invariant", micro_batches=4) for groups in PLANS[world][-1:] if world != 3]
    return [
        *ordered,
        *invariant,
        Plan(PLANS[world][-1], overlap=False),
        *[Plan(groups, mode="fast") for groups in PLANS[world]],
        Plan(PLANS[world][-1], mode="fast", dtype=torch.bfloat16),
        *[Plan(groups, mode="fast", frozen=FROZEN) for groups in PLANS[world]],
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_executor_interpreter_and_torch_agree_for_every_plan(world: int, tmp_path: Path) -> None:
    plans = plans_of(world)
    results = run_ranks(train_twice, world, tmp_path, plans)
    for rank in range(world):
        for plan, (executor, interpreter) in zip(plans, results[rank], strict=True):
            assert_equal_bits(executor, interpreter)
            assert executor["totals"][:, 2].tolist() == [0, world, 0]
            if plan.mode == "ordered":
                assert_equal_bits(executor, results[0][0][0], ("totals", "states"))
            if plan.dtype == torch.float32:
                check_against_torch(executor, world, plan)


def check_against_torch(outcome: Outcome, world: int, plan: Plan) -> None:
    totals, params = linear_step.torch_totals_and_params(STEPS, world, plan)
    torch.testing.assert_close(outcome["totals"][:, [0, 1, 3]], torch.tensor(totals).double(), rtol=1e-5, atol=0)
    for index, param in enumerate(params):
        if index in plan.frozen:
            assert f"master.{index}" not in outcome["states"]
            continue
        torch.testing.assert_close(outcome["states"][f"master.{index}"], param, rtol=1e-5, atol=1e-5)


def test_only_mode_invariant_gives_equal_bits_for_any_number_of_ranks(tmp_path: Path) -> None:
    modes: tuple[Mode, ...] = ("invariant", "ordered")
    found: dict[tuple[Mode, int], Outcome] = {}
    for world in (1, 2, 4):
        plans = [Plan(PLANS[world][-1], mode=mode, micro_batches=8 // world) for mode in modes]
        results = run_ranks(train_twice, world, tmp_path / str(world), plans)
        for mode, (executor, interpreter) in zip(modes, results[0], strict=True):
            assert_equal_bits(executor, interpreter)
            found[mode, world] = {**executor, "totals": executor["totals"][:, [0, 1, 3]]}  # not those who want to stop
    for world in (2, 4):
        assert_equal_bits(found["invariant", world], found["invariant", 1], ("totals", "states"))
        with pytest.raises(AssertionError):
            assert_equal_bits(found["ordered", world], found["ordered", 1], ("totals", "states"))


def nan_loss(x: Tensor, target: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    loss_sum, count, error = linear_step.loss(x, target, head)
    return loss_sum * math.nan, count, error


def step_with_nan_on_rank_1(place: Place, plan: Plan) -> tuple[Tensor, bool]:
    step_program = program(plan, place.world)
    regions = linear_step.regions() | ({"loss": nan_loss} if place.rank == 1 else {})
    bindings = bind(step_program, plan, place, regions=regions)
    before = [owned.master.clone() for owned in bindings.owned]
    totals = Executor(step_program, bindings, OPTIM).step(batches_of(0, place.rank, 2, plan), lr=0.1, step=1)
    unchanged = all(torch.equal(a, b.master) for a, b in zip(before, bindings.owned, strict=True))
    return totals, unchanged


def test_a_loss_that_is_no_number_on_one_rank_stops_the_update_on_all(tmp_path: Path) -> None:
    for totals, unchanged in run_ranks(step_with_nan_on_rank_1, 2, tmp_path, Plan((1, 2, 2), mode="fast")):
        assert math.isnan(totals[0])
        assert totals[1] == 2 * 2 * linear_step.ROWS
        assert unchanged


def peak_of(step_program: Program, inputs: int) -> int:
    """The most bytes alive if instructions run one by one, by what the Program declares."""
    sizes = {b.name: b.bytes for b in step_program.buffers if not b.persistent and not b.name.startswith("norm")}
    for m in range(step_program.micro_batches):
        sizes |= {f"%m{m}.{value.name[1:]}": value.bytes for value in step_program.values}
    live: set[str] = set()
    peak = 0
    for i in step_program.instructions:
        live = live - set(i.writes) if i.kind == "free" else live | (set(i.writes) & sizes.keys())
        peak = max(peak, sum(sizes[name] for name in live))
    return peak + inputs


def memory_of_a_step(place: Place, plan: Plan) -> tuple[int, int, int]:
    step_program = program(plan, place.world)
    engine = Executor(step_program, bind(step_program, plan, place), OPTIM)
    batches = batches_of(0, place.rank, place.world, plan)
    engine.step(batches, lr=0.1, step=1)
    inputs = sum(tensor.nbytes for each in batches for tensor in each.values())
    return engine.peak_bytes, peak_of(step_program, inputs), engine.live_bytes


@pytest.mark.parametrize("groups", [(1, 1, 2), (2, 2, 2)])
def test_transient_memory_is_what_the_program_declares(tmp_path: Path, groups: tuple[int, int, int]) -> None:
    for peak, expected, left in run_ranks(memory_of_a_step, 2, tmp_path, Plan(groups, overlap=False)):
        assert peak == expected
        assert left == 0


def trace_of_a_step(place: Place, plan: Plan) -> tuple[Program, Tensor, int, int]:
    step_program = program(plan, place.world)
    engine = Executor(step_program, bind(step_program, plan, place), OPTIM)
    begin = time.monotonic_ns()
    engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
    return step_program, engine.trace, begin, time.monotonic_ns()


def test_the_trace_keeps_the_order_of_lanes_and_dependencies(tmp_path: Path) -> None:
    for step_program, trace, begin, end in run_ranks(trace_of_a_step, 2, tmp_path, Plan((1, 2, 2))):
        times = trace.tolist()
        assert begin <= min(start for start, _ in times) <= max(stop for _, stop in times) <= end
        last_of_lane: dict[str, int] = {}
        for number, i in enumerate(step_program.instructions):
            start, stop = times[number]
            assert start <= stop
            assert all(times[earlier][1] <= start for earlier in i.after)
            assert last_of_lane.get(i.lane, 0) <= start, "two instructions of one lane at once"
            last_of_lane[i.lane] = stop
