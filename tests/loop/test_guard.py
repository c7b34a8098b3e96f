"""run.guard finds a bit that flipped on one rank, names rank, bucket and step, and ends with 10; else it is silent."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internevo_engine.engine import Engine
from internevo_engine.errors import CorruptionError
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.plan.levels import levels
from internevo_engine.run import main
from internevo_engine.runtime.extension import disarm_faults
from internevo_engine.runtime.replicas import disagreements
from tests.conftest import Tiny

COMMAND = [sys.executable, "-m", "internevo_engine.run"]
ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow


def run(tiny: Tiny, *options: str, faults: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "IE_FAULTS": faults, "OMP_NUM_THREADS": "1"}
    if not faults:
        del environment["IE_FAULTS"]
    command = [*COMMAND, tiny.config, "run.allow_faults=true", "run.guard_every=2", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def table(world: int, num_buckets: int = 3) -> torch.Tensor:
    return torch.arange(2 * num_buckets).view(1, 2, num_buckets).repeat(world, 1, 1)


def found(sums: torch.Tensor, sizes: tuple[int, int, int]) -> list[tuple[str, int, tuple[int, ...]]]:
    world = len(sums)
    return [(d.what, d.bucket, d.ranks) for d in disagreements(sums, levels(*sizes, world, world))]


def test_equal_copies_say_nothing() -> None:
    assert not found(table(4), (1, 1, 4))


def test_the_minority_is_named_and_of_two_both_are() -> None:
    sums = table(4)
    sums[2, 0, 1] += 1
    assert found(sums, (1, 1, 4)) == [("parameters", 1, (2,))]
    assert found(sums[2:], (1, 1, 2)) == [("parameters", 1, (0, 1))]
    sums[1, 0, 1] += 2
    assert found(sums, (1, 1, 4)) == [("parameters", 1, (0, 1, 2, 3))]


def test_only_ranks_of_one_slice_are_compared() -> None:
    sums = table(4)
    sums[1::2, 0] += 5  # the second half of each bucket, where parameters are cut over two ranks
    sums[1::2, 1] += 7
    assert not found(sums, (2, 2, 2))
    sums[3, 1, 2] ^= 1 << 22
    assert found(sums, (2, 2, 2)) == [("weights and moments", 2, (1, 3))]
    assert found(sums, (2, 2, 4)) == []  # nobody else has it


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["launch.nproc=2"], "ranks 0 and 1 hold different bits of the weights and", marks=SLOW),
        (["launch.nproc=2", "zero.optim=2"], "ranks 0 and 1 hold different bits of the parameters of bucket "),
        pytest.param(["launch.nproc=3"], "rank 1 holds other bits of the weights", marks=SLOW),
    ],
)
def test_a_bit_that_flips_in_the_parameters_of_one_rank_is_found_and_named(tiny, options, says) -> None:
    done = run(tiny, "run.guard=light", *options, faults="weights@1:step=4:flip=20")
    assert done.returncode == 10, done.stderr
    assert "error: rank 0: step 4: " in done.stderr
    assert says in done.stderr
    assert [record["step"] for record in read_jsonl(tiny.run / "metrics.jsonl")] == [1, 2, 3]
    assert all(record["faults_armed"] for record in read_jsonl(tiny.run / "metrics.jsonl"))
    assert tiny.run.with_name("tiny.rank1.faults").read_text() == "weights@1:step=4:flip=20\n"


@SLOW
@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_a_sound_run_is_not_suspected(tiny: Tiny, mode: str) -> None:
    options = ["run.guard=light", "run.guard_every=1", "launch.nproc=2", "zero.optim=2", "model.dtype=bf16"]
    done = run(tiny, f"graph.mode={mode}", *options)
    assert done.returncode == 0, done.stderr


def test_faults_need_both_keys(tiny: Tiny, monkeypatch, capsys) -> None:
    monkeypatch.setenv("IE_FAULTS", "step@0:step=2:raise")
    assert main([tiny.config, "run.steps=2"]) == 0
    assert "FAULTS" not in (tiny.run / "log/rank0.log").read_text()
    assert "faults_armed" not in read_jsonl(tiny.run / "metrics.jsonl")[0]
    armed = [tiny.config, "run.steps=2", "--fresh", "run.allow_faults=true"]
    assert main(armed) == 70
    assert "FAULTS ARE ARMED: this run breaks on purpose: step@0:step=2:raise" in capsys.readouterr().out
    assert [record["faults_armed"] for record in read_jsonl(tiny.run / "metrics.jsonl")] == [True]
    assert main(armed) == 0  # what has happened does not happen again
    monkeypatch.setenv("IE_FAULTS", "step@0:sometimes:raise")
    assert main(armed) == 2
    assert "IE_FAULTS: fault 'step@0:sometimes:raise'" in capsys.readouterr().err
    monkeypatch.delenv("IE_FAULTS")
    disarm_faults()
    assert main(armed) == 0


FULL = ["run.guard=full", "launch.nproc=2", "zero.optim=2", "data.grad_accum=2"]


@pytest.mark.parametrize(
    ("fault", "options", "says"),
    [
        ("message@1:step=4:flip=3", [], r"step 4: what rank 1 received from rank 0 is not what was sent \(re"),
        pytest.param(
            "message@0:hit=3:flip=30",
            ["zero.param=2", "zero.grad=2"],
            "rank 0 received from rank [01] is not",
            marks=SLOW,
        ),
        pytest.param(
            "message@0:step=2:flip=9",
            ["model.dtype=bf16", "comm.wire=bf16"],
            "step 2: what rank 0 received",
            marks=SLOW,
        ),
        pytest.param("message@1:step=3:flip=9", ["zero.optim=1"], "step 3: what rank 1 received from", marks=SLOW),
        pytest.param(
            "weights@1:step=5:flip=20",
            ["zero.optim=1"],
            "step 5: weights or moments of bucket [0-9]+ changed on rank 1 ",
            marks=SLOW,
        ),
    ],
)
def test_full_finds_a_flipped_bit_before_the_update_and_names_who_sent_and_received(tiny, fault, options, says) -> None:
    options = ["checkpoint.every=2", *options]
    done = run(tiny, *FULL, *options, faults=fault)
    assert done.returncode == 10, done.stderr
    assert re.search(says, done.stderr), done.stderr
    again = run(tiny, *FULL, *options, faults=fault)  # what happened is in the log, and does not happen again
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["zero.param=2", "zero.grad=2"],
        pytest.param(["launch.nproc=1", "zero.optim=1"], marks=SLOW),
        pytest.param(["model.dtype=bf16", "comm.wire=bf16"], marks=SLOW),
    ],
)
def test_a_sound_run_is_not_suspected_in_full(tiny: Tiny, options: list[str]) -> None:
    done = run(tiny, *FULL, "checkpoint.every=2", "run.bad_step=rewind", *options)
    assert done.returncode == 0, done.stderr


def test_states_that_a_load_replaces_are_not_suspected(tmp_path: Path) -> None:
    engine = Engine(torch.nn.Linear(3, 1), lambda m, x: m(x).square().mean(), audit=True, graph={"compile": "eager"})
    batch = torch.ones(2, 3)
    engine.step([batch])
    engine.save(str(tmp_path))
    engine.step([batch])
    engine.load(str(tmp_path))
    engine.step([batch])
    with torch.no_grad():
        engine.state.shards[0].states[0][0] += 1
    with pytest.raises(CorruptionError, match="step 3: weights or moments of bucket 0 changed on rank 0"):
        engine.step([batch])
    engine.close()


def test_hooks_have_no_messages_to_look_at(tiny: Tiny, capsys) -> None:
    assert main([tiny.config, "run.guard=full", "graph.mode=hooks"]) == 2
    assert "run.guard=full needs graph.mode=graph" in capsys.readouterr().err
