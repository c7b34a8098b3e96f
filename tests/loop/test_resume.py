"""The same command again goes on, with the same bits; what would make another run of it is refused by name."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from internevo_engine.engine import Engine, StepResult
from internevo_engine.loop.fingerprint import first_difference
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.run import main
from tests.conftest import Tiny

EVERY_2 = "checkpoint.every=2"
COMMAND = [sys.executable, "-m", "internevo_engine.run"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def steps(run: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(run / "metrics.jsonl")]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


class Killed(BaseException):
    """The process ended in the middle of its loop, before it could save or say anything."""


def during_step(number: int, happens: Callable[[], object]) -> pytest.MonkeyPatch:
    """Let something happen in this step; a request to stop is heard by the next."""
    monkeypatch, real = pytest.MonkeyPatch(), Engine.step

    def step(engine: Engine, *arguments: Any, **keywords: Any) -> StepResult:
        if engine.num_steps_done == number - 1:
            happens()
        return real(engine, *arguments, **keywords)

    monkeypatch.setattr(Engine, "step", step)
    return monkeypatch


def state_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def kill_at_step_7(config: str, options: list[str]) -> None:
    command = [*COMMAND, config, *options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    next(line for line in process.stdout if line.startswith("step  7/12"))
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_kill_9_and_the_same_command_again_give_the_bits_of_a_run_without_it(tiny: Tiny, capsys):
    straight, options = tiny.folder / "runs/straight", [EVERY_2, "run.steps=12"]
    kill_at_step_7(tiny.config, options)
    assert main([tiny.config, *options]) == 0
    assert "going on from the checkpoint of step" in capsys.readouterr().out
    assert main([tiny.config, *options, f"run.dir={straight}"]) == 0
    assert first_difference(straight, tiny.run) == "12 steps are equal, bit for bit"
    assert steps(tiny.run) == list(range(1, 13))
    tokens = [[record["tokens"] for record in read_jsonl(run / "metrics.jsonl")] for run in (straight, tiny.run)]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1, 1, 2), (2, 2, 2)])
def test_kill_9_of_two_ranks_and_the_same_command_again_give_the_same_bits(tiny: Tiny, sizes: tuple[int, int, int]):
    straight, zero = tiny.folder / "runs/straight", zip(("param", "grad", "optim"), sizes, strict=True)
    options = [EVERY_2, "run.steps=12", "launch.nproc=2", *(f"zero.{state}={size}" for state, size in zero)]
    kill_at_step_7(tiny.config, options)
    for more in ([], [f"run.dir={straight}"]):
        subprocess.run([*COMMAND, tiny.config, *options, *more], env=ENVIRONMENT, check=True)
    assert "going on from the checkpoint of step" in (tiny.run / "log/rank0.log").read_text()
    assert first_difference(straight, tiny.run) == "12 steps are equal, bit for bit"


ASKING: dict[str, Callable[[Path], object]] = {
    "SIGINT": lambda run: os.kill(os.getpid(), signal.SIGINT),
    "SIGTERM": lambda run: os.kill(os.getpid(), signal.SIGTERM),
    "SIGUSR1": lambda run: os.kill(os.getpid(), signal.SIGUSR1),
    "STOP": lambda run: (run / "STOP").touch(),
}


@pytest.mark.parametrize("how", ASKING)
def test_a_run_that_is_asked_to_stop_publishes_a_checkpoint_and_ends_with_75(tiny: Tiny, capsys, how: str):
    patch = during_step(2, lambda: ASKING[how](tiny.run))
    assert main([tiny.config, "checkpoint.every=0"]) == 75
    patch.undo()
    assert "stopped on request after step 3; the same command goes on from there" in capsys.readouterr().out
    assert checkpoints(tiny.run) == ["step-3"]
    assert state_of(tiny.run)["state"] == "interrupted"
    assert not (tiny.run / "STOP").exists()
    assert main([tiny.config, "checkpoint.every=0"]) == 0
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6]


def die() -> None:
    raise Killed


def test_records_of_lost_steps_are_made_again_and_none_twice(tiny: Tiny, capsys):
    patch = during_step(6, die)
    with pytest.raises(Killed):
        main([tiny.config, EVERY_2, "run.valid_every=1"])
    patch.undo()
    with (tiny.run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a line that the machine did not finish
    assert main([tiny.config, EVERY_2, "run.valid_every=1"]) == 0
    assert "going on from the checkpoint of step 4" in capsys.readouterr().out
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in read_jsonl(tiny.run / "fingerprint.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in read_jsonl(tiny.run / "valid.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert checkpoints(tiny.run) == ["step-2", "step-4", "step-6"]


def test_a_finished_run_goes_on_when_steps_grow(tiny: Tiny, capsys):
    assert main([tiny.config]) == 0
    assert main([tiny.config, "run.steps=8"]) == 0
    assert "going on from the checkpoint of step 6" in capsys.readouterr().out
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert main([tiny.config, "run.steps=7"]) == 2
    assert "run.steps: 8 -> 7" in capsys.readouterr().err


def stopped(tiny: Tiny, *options: str) -> None:
    """A run that was asked to stop after two steps."""
    patch = during_step(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main([tiny.config, *options]) == 75
    patch.undo()


REFUSED = {
    "optim.lr=2e-2": "optim.lr: 0.01 -> 0.02",
    "run.seed=7": "run.seed: 1024 -> 7",
    "model.dtype=bf16": "model.dtype: fp32 -> bf16",
    "run.steps=5": "run.steps: 6 -> 5",
    "data.grad_accum=2": "data.grad_accum x ranks: 1 -> 2 x 1 = 2",
    "comm.reduction=ordered": "comm.reduction: fast -> ordered",
}


def test_a_change_that_shapes_the_numbers_is_refused_with_old_and_new(tiny: Tiny, capsys):
    stopped(tiny)
    before = {path: path.read_bytes() for path in tiny.run.rglob("*") if path.is_file()}
    for override, says in REFUSED.items():
        assert main([tiny.config, override]) == 2
        assert says in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tiny.run.rglob("*") if path.is_file()} == before


def test_what_does_not_shape_the_numbers_may_change(tiny: Tiny, capsys):
    stopped(tiny)
    free = ["graph.mode=hooks", "comm.bucket_mb=0.02", "run.log_every=3", "checkpoint.keep=1", "comm.overlap=false"]
    assert main([tiny.config, *free]) == 0
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    assert checkpoints(tiny.run) == ["step-6"]


def test_changed_data_is_refused_unless_it_is_named(tiny: Tiny, capsys):
    stopped(tiny, f"data.tokenizer={tokenizer_of(tiny)}")
    (tiny.folder / "train/00.txt").write_text("eat 3 apples\n")
    options = [f"data.tokenizer={tokenizer_of(tiny)}"]
    assert main([tiny.config, *options]) == 3
    error = capsys.readouterr().err
    assert f"data.train: '{tiny.folder}/train' has SHA-256" in error
    assert main([tiny.config, *options, f"checkpoint.changed_data=['{tiny.folder}/train']"]) == 0
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6]


def tokenizer_of(tiny: Tiny) -> Path:
    """One that stays the same when the text changes."""
    from internevo_engine.data.corpora import TextCorpus
    from internevo_engine.data.tokenizers import train_tokenizer

    path = tiny.folder / "fixed.model"
    if not path.exists():
        train_tokenizer(TextCorpus.open(str(tiny.folder / "train")).documents(), 300, path)
    return path


def test_damaged_checkpoints_end_with_4_and_the_one_before_is_taken_first(tiny: Tiny, capsys):
    assert main([tiny.config, EVERY_2]) == 0
    state = state_of(tiny.run) | {"state": "failed"}
    (tiny.run / "run.json").write_text(json.dumps(state))
    damage(tiny.run / "checkpoints/step-6/rank-00000.safetensors")
    assert main([tiny.config, EVERY_2]) == 0
    output = capsys.readouterr().out
    assert "checkpoint step-6 is refused: " in output
    assert "going on from the checkpoint of step 4" in output
    assert checkpoints(tiny.run) == ["refused-step-6.1", "step-2", "step-4", "step-6"]
    (tiny.run / "run.json").write_text(json.dumps(state))
    for step in (2, 4, 6):
        damage(tiny.run / f"checkpoints/step-{step}/rank-00000.safetensors")
    assert main([tiny.config, EVERY_2]) == 4
    assert "verifies; of 3, the newest: " in capsys.readouterr().err


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def test_checkpoints_elsewhere_are_enough_to_go_on_where_the_run_folder_is_lost(tiny: Tiny, capsys):
    elsewhere = f"checkpoint.dir=file://{tiny.folder}/elsewhere"
    stopped(tiny, elsewhere)
    for path in sorted(tiny.run.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert main([tiny.config, elsewhere]) == 0
    assert "going on from the checkpoint of step 2" in capsys.readouterr().out
    assert main([tiny.config, elsewhere, "--fresh"]) == 2
    assert "holds the checkpoints of an earlier run" in capsys.readouterr().err


def test_checkpoints_of_another_run_are_refused(tiny: Tiny, capsys):
    stopped(tiny)
    (tiny.run / "run.json").write_text(json.dumps(state_of(tiny.run) | {"id": "another"}))
    assert main([tiny.config]) == 2
    assert "the run folder to run another" in capsys.readouterr().err
