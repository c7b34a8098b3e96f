"""The executor: equal bits to its interpreter and for every plan, near torch's AdamW, and a clean end after errors."""

import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from internevo_engine.errors import LostRankError
from internevo_engine.program import Lane, Program
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.interpreter import Interpreter
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.transfers import routes
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
    engine.refresh()
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
    """Every plan in order, one of them also without overlap; every plan fast; one in bf16."""
    ordered = [Plan(groups) for groups in PLANS[world]]
    return [
        *ordered,
        Plan(PLANS[world][-1], overlap=False),
        *[Plan(groups, mode="fast") for groups in PLANS[world]],
        Plan(PLANS[world][-1], mode="fast", dtype=torch.bfloat16),
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
        torch.testing.assert_close(outcome["states"][f"master.{index}"], param, rtol=1e-5, atol=1e-5)


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


def record_collectives(calls: dict[str, list[tuple[str, int]]]) -> torch.library.Library:
    """From here on in this process each collective of gloo notes (name, bytes of the longer side) by group name."""

    def noted(name: str, group: Any, longer: Tensor) -> dist.Backend:
        group = dist.ProcessGroup.unbox(group)
        calls.setdefault(group.group_name, []).append((name, longer.nbytes))
        return group._get_backend(torch.device("cpu"))

    def all_gather(out: Tensor, own: Tensor, group: Any, *_: Any) -> tuple[Tensor, Any]:
        return out, noted("all_gather", group, out)._allgather_base(out, own).boxed()

    def reduce_scatter(out: Tensor, whole: Tensor, group: Any, *_: Any) -> tuple[Tensor, Any]:
        # gloo's own has no future; what it writes does not matter here
        return out, noted("reduce_scatter", group, whole).allreduce([whole]).boxed()

    def all_reduce(tensors: list[Tensor], group: Any, *_: Any) -> tuple[list[Tensor], Any]:
        return tensors, noted("all_reduce", group, tensors[0]).allreduce(tensors).boxed()

    library = torch.library.Library("c10d", "IMPL")
    library.impl("_allgather_base_", all_gather, "CPU", allow_override=True)
    library.impl("_reduce_scatter_base_", reduce_scatter, "CPU", allow_override=True)
    library.impl("allreduce_", all_reduce, "CPU", allow_override=True)
    return library


def calls_of_a_step(place: Place, plan: Plan) -> tuple[Program, dict[tuple[Lane, str], list[tuple[str, int]]]]:
    """What each group was asked for in a step with NCCL's routes, which gloo can serve as well."""
    step_program = program(plan, place.world)
    bindings = bind(step_program, plan, place)
    engine = Executor(step_program, replace(bindings, routes=routes("nccl", plan.mode, torch.float32)), OPTIM)
    calls: dict[str, list[tuple[str, int]]] = {}
    library = record_collectives(calls)
    engine.step(batches_of(0, place.rank, place.world, plan), lr=0.1, step=1)
    library._destroy()
    return step_program, {where: calls[group] for where, group in bindings.groups.items()}


def calls_expected(step_program: Program, lane: str, level_name: str) -> list[tuple[str, int]]:
    """One call of the backend for each transfer of a lane, in the order of the Program."""
    level = next((each for each in step_program.levels if each.name == level_name), None)
    names = {"gather": "all_gather", "refresh": "all_gather", "reduce": "reduce_scatter", "norm": "all_reduce"}
    calls = []
    for i in step_program.instructions:
        if (i.lane, i.level) == (lane, level_name):
            name = "all_reduce" if level and level.state == "R" else names[i.kind]
            sent_twice = 2 if name == "all_reduce" else 1
            calls.append((name, i.bytes // sent_twice * level.size // (level.size - 1) if level else -1))
    return calls


@pytest.mark.parametrize("groups", [(1, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_in_nccls_routes_each_transfer_is_one_call_in_program_order(
    tmp_path: Path, groups: tuple[int, int, int]
) -> None:
    for step_program, calls in run_ranks(calls_of_a_step, 2, tmp_path, Plan(groups, mode="fast")):
        assert len(calls) > 1
        for (lane, level), found in calls.items():
            of_levels = [(name, num_bytes if level != "all" else -1) for name, num_bytes in found]
            assert of_levels == calls_expected(step_program, lane, level)


def alone(plan: Plan, **changes: Any) -> Executor:
    step_program = program(plan, 1)
    return Executor(step_program, bind(step_program, plan, ALONE, **changes), OPTIM)


def boom(*_values: Tensor) -> tuple[Tensor, ...]:
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize(
    ("region", "error", "message"),
    [
        (boom, ZeroDivisionError, "boom"),
        (lambda *values: list(values), RuntimeError, "the region returned a list instead of a tuple"),
        (lambda *_: (), RuntimeError, "the region returned 0 values instead of 3"),
        (lambda *_: (1, 2, 3), RuntimeError, "the region returned a int as value 0 instead of a tensor"),
        (lambda x, *_: (x @ x,) * 3, RuntimeError, "mat1 and mat2 shapes cannot be multiplied"),
    ],
)
def test_what_goes_wrong_in_a_region_is_raised_with_the_instruction(
    region: linear_step.Region, error: type[Exception], message: str
) -> None:
    plan = Plan((1, 1, 1))
    engine = alone(plan, regions=linear_step.regions() | {"bwd.1": region})
    with pytest.raises(error) as caught:
        engine.step(batches_of(0, 0, 1, plan), lr=0.1, step=1)
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert message in text
    assert "compute compute bwd.1 m=0" in text
    with pytest.raises(RuntimeError) as again:
        engine.step(batches_of(0, 0, 1, plan), lr=0.1, step=1)
    assert "an earlier step failed" in str(again.value)


def test_bindings_that_do_not_fit_the_program_are_refused() -> None:
    plan = Plan((1, 1, 1))
    buffers = bind(program(plan, 1), plan, ALONE).buffers
    mistakes = [
        ({"regions": {}}, "no region for call fwd.0"),
        ({"owned": []}, "buckets, not"),
        ({"buffers": {n: t for n, t in buffers.items() if n != "gsum[0]"}}, "buffer gsum[0] is persistent; give its"),
        ({"buffers": {**buffers, "gsum[0]": torch.zeros(1)}}, "buffer gsum[0] has 4 bytes; the Program declares"),
    ]
    for changes, message in mistakes:
        with pytest.raises(RuntimeError) as caught:
            alone(plan, **changes)
        assert message in str(caught.value)
    with pytest.raises(RuntimeError) as caught:
        alone(plan).step([{**batch, "%h9": torch.zeros(1)} for batch in batches_of(0, 0, 1, plan)], lr=0.1, step=1)
    assert "the Program declares no %m" in str(caught.value)


def fail_on_rank_1(place: Place, plan: Plan, folder: Path) -> None:
    """Rank 1 ends with a region's error; rank 0 must notice. Neither may hang, so both end here."""
    step_program = program(plan, place.world)
    regions = linear_step.regions() | ({"bwd.1": boom} if place.rank == 1 else {})
    engine = Executor(step_program, bind(step_program, plan, place, regions=regions), OPTIM)
    try:
        engine.step(batches_of(0, place.rank, 2, plan), lr=0.1, step=1)
    except Exception as error:
        del engine  # joins the lanes, though a collective that rank 1 has sent may never end
        (folder / f"error{place.rank}").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)


@pytest.mark.parametrize("groups", [(1, 1, 2), (2, 2, 2)])
def test_an_error_on_one_rank_ends_the_step_on_all(tmp_path: Path, groups: tuple[int, int, int]) -> None:
    with pytest.raises(FileNotFoundError):  # of results: the ranks left before they could return one
        run_ranks(fail_on_rank_1, 2, tmp_path, Plan(groups), tmp_path)
    assert (tmp_path / "error1").read_text() == "ZeroDivisionError: boom"
    lost = (tmp_path / "error0").read_text()
    assert lost.startswith(f"{LostRankError.__name__}: rank 0: a collective failed: another rank ended")


LEAVE_BEHIND = """
import sys, torch
from tests.runtime.linear_step import *
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.launch import ALONE
plan = Plan((1, 1, 1))
step_program = program(plan, 1)
changes = {"regions": regions() | {"loss": lambda *_: 1 / 0}} if sys.argv[1] == "error" else {}
engine = Executor(step_program, bind(step_program, plan, ALONE, **changes), OPTIM)
engine.step(batches_of(0, 0, 1, plan), lr=0.1, step=1)
print("done")
"""


@pytest.mark.parametrize(("ending", "code"), [("normal", 0), ("error", 1)])
def test_python_ends_cleanly_with_an_executor_alive(ending: str, code: int) -> None:
    command = [sys.executable, "-c", LEAVE_BEHIND, ending]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert ("done" in done.stdout) == (ending == "normal")
    assert ("in instruction 3 compute compute loss m=0" in done.stderr) == (ending == "error"), done.stderr
