"""Lanes as streams: the executor on a CPU with recorded streams, and on a GPU where there is one."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.program import Lane, Program
from internevo_engine.runtime.executor import Executor
from internevo_engine.runtime.interpreter import Interpreter
from internevo_engine.runtime.launch import ALONE, Place
from tests.ranks import run_ranks
from tests.runtime.linear_step import OPTIM, Plan, batches_of, bind, program, whole_states
from tests.runtime.test_nccl_routes import nccl_routes

STEPS = 2
LANES = get_args(Lane)
F32 = torch.float32
ROOT = Path(__file__).parents[2]
TORCH = Path(torch.__file__).parent


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that gives the CPU streams."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("guard") / "recording_guard.so"
    source = Path(__file__).with_name("recording_guard.cpp")
    flags = ["-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    torch_flags = [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", "-lc10"]
    subprocess.run(["g++", *flags, str(source), *torch_flags, "-o", str(library)], check=True)
    return library


def train(runner: type[Executor] | type[Interpreter], place: Place, plan: Plan, **bound: Any) -> dict[str, Tensor]:
    """Totals of every step, and all states at the end, by name."""
    step_program = program(plan, place.world)
    bindings = bind(step_program, plan, place, **bound)
    engine = runner(step_program, bindings, OPTIM)
    totals = []
    for step in range(STEPS):
        batches = batches_of(step, place.rank, place.world, plan)
        moved = [{name: value.to(bound.get("device", "cpu")) for name, value in batch.items()} for batch in batches]
        with no_wait_for_the_device(step):
            totals.append(engine.step(moved, lr=OPTIM.lr, step=step + 1))
    return {"totals": torch.stack(totals), **whole_states(step_program, plan, place, bindings)}


@contextmanager
def no_wait_for_the_device(step: int) -> Iterator[None]:
    """On CUDA whatever makes the host wait raises. Not in the first step, in which libraries set themselves up."""
    if step == 0 or not torch.cuda.is_initialized():
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def train_on_streams(place: Place, guard: Path, plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """For each plan: what Executor on streams and Interpreter computed, and what the device was told."""
    native = ctypes.CDLL(str(guard))
    native.recorded.restype = ctypes.c_char_p
    native.give_cpu_streams()
    outcomes = []
    for plan in plans:
        begin = len(native.recorded())
        streams = train(Executor, place, plan, queueing="streams")
        log = native.recorded()[begin:].decode()
        outcomes.append({"streams": streams, "interpreter": train(Interpreter, place, plan), "log": log})
    return outcomes


def recorded_order(log: str, num_instructions: int) -> list[set[int]]:
    """What the device was told to end before each instruction of the first step.

    A step records the caller's stream, lets every other lane's stream wait for that, then enters the stream of one
    instruction after the other.
    """
    lines = [tuple(line.split()) for line in log.splitlines()]
    forked = next(event for _, _, event in lines)
    num_forks = sum(line[0] == "wait" and line[2] == forked for line in lines[: 2 * len(LANES)])
    streams: dict[str, set[int]] = {}
    events: dict[str, set[int]] = {forked: set()}
    before: list[set[int]] = []
    for what, stream, *event in lines[1 + 2 * num_forks :]:
        ended = streams.setdefault(stream, set())
        if what == "enter":
            before.append(set(ended))
            ended.add(len(before) - 1)
        elif what == "record":
            events[event[0]] = set(ended)
        else:
            before[-1] |= events[event[0]]
            ended |= events[event[0]]
    return before[:num_instructions]


def program_order(step_program: Program) -> list[set[int]]:
    """What must have ended before each instruction: by its lane, by `after`, and by what follows from the two."""
    before: list[set[int]] = []
    last_of_lane: dict[str, int] = {}
    for number, i in enumerate(step_program.instructions):
        waits = {*i.after, *({last_of_lane[i.lane]} if i.lane in last_of_lane else ())}
        before.append(waits.union(*(before[earlier] for earlier in waits)))
        last_of_lane[i.lane] = number
    return before


PLANS = {
    1: [Plan((1, 1, 1)), Plan((1, 1, 1), mode="fast", dtype=torch.bfloat16)],
    2: [
        Plan((1, 1, 1)),
        Plan((1, 2, 2)),
        Plan((2, 2, 2)),
        Plan((2, 2, 2), overlap=False),
        Plan((1, 1, 2), mode="fast"),
    ],
}


@pytest.mark.parametrize("world", PLANS)
def test_on_streams_bits_are_the_interpreters_and_the_order_holds_the_programs(
    world: int, guard: Path, tmp_path: Path
) -> None:
    for outcomes in run_ranks(train_on_streams, world, tmp_path, guard, PLANS[world]):
        for plan, outcome in zip(PLANS[world], outcomes, strict=True):
            for name, expected in outcome["interpreter"].items():
                assert torch.equal(outcome["streams"][name], expected), name
            needed = program_order(program(plan, world))
            found = recorded_order(outcome["log"], len(needed))
            assert "host" not in outcome["log"]
            assert all(map(set.issuperset, found, needed))  # and what memory asks for; see csrc/tests/test_streams.cpp
            assert any(len(before) < number for number, before in enumerate(found)) == plan.overlap
            assert len({line.split()[1] for line in outcome["log"].splitlines()}) == len(LANES)


def test_a_device_without_streams_is_named() -> None:
    plan = Plan((1, 1, 1))
    step_program = program(plan, 1)
    engine = Executor(step_program, bind(step_program, plan, ALONE, queueing="streams"), OPTIM)
    with pytest.raises(RuntimeError, match="cpu backend doesn't support events"):
        engine.step(batches_of(0, 0, 1, plan), lr=0.1, step=1)
    with pytest.raises(RuntimeError, match="lanes can't be 'fibers'; they are 'threads' or 'streams'"):
        Executor(step_program, bind(step_program, plan, ALONE, queueing="fibers"), OPTIM)


def need_gpus(number: int) -> None:
    if torch.cuda.device_count() < number:
        pytest.skip(f"needs {number} CUDA devices, {torch.cuda.device_count()} are here")


def train_on_gpu(place: Place, plan: Plan) -> dict[str, Tensor]:
    torch.cuda.set_device(place.local_rank)
    nccl = nccl_routes(program(plan, place.world), plan)
    outcome = train(Executor, place, plan, device=f"cuda:{place.local_rank}", **nccl)
    return {name: tensor.cpu() for name, tensor in outcome.items()}


def train_on_cpu(place: Place, plan: Plan) -> dict[str, Tensor]:
    return train(Executor, place, plan)


@pytest.mark.gpu
@pytest.mark.parametrize("world", PLANS)
def test_a_step_on_gpus_is_that_of_cpus_and_waits_for_nothing(world: int, tmp_path: Path) -> None:
    need_gpus(world)
    for number, plan in enumerate(p for p in PLANS[world] if p.dtype == F32):
        expected = run_ranks(train_on_cpu, world, tmp_path / f"cpu{number}", plan)[0]
        for found in run_ranks(train_on_gpu, world, tmp_path / f"gpu{number}", plan, backend="nccl"):
            for name, tensor in expected.items():  # sums of matrix products are in another order
                torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def losses_of_the_demo(folder: Path, *settings: str) -> list[float]:
    command = [sys.executable, "-m", "internevo_engine.run", "configs/demo.yaml", f"run.dir={folder}"]
    fixed = ["run.steps=20", "run.valid_every=0", "run.log_every=1", "launch.device=cuda", "model.dtype=fp32"]
    subprocess.run([*command, *fixed, *settings], check=True, cwd=ROOT)
    return [record["loss"] for record in read_jsonl(folder / "metrics.jsonl")]


@pytest.mark.gpu
@pytest.mark.parametrize("world", [1, 2])
def test_on_gpus_the_captured_demo_trains_as_eager_autograd_does(world: int, tmp_path: Path) -> None:
    need_gpus(world)
    ranks = f"launch.nproc={world}"
    eager = losses_of_the_demo(tmp_path / "eager", ranks, "graph.mode=hooks")
    captured = losses_of_the_demo(tmp_path / "captured", ranks, "graph.mode=graph", "zero.optim=world")
    assert captured == pytest.approx(eager, rel=1e-3)  # 20 steps apart from kernels that add in another order
