"""The executor when something goes wrong: what is raised, that nobody hangs, and that Python still ends."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo_engine.errors import LostRankError
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.launch import ALONE, Place
from tests.ranks import run_ranks
from tests.runtime import linear_step
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, program


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
