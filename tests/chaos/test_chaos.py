"""Chaos: trials are a function of the seed, the judge sees what he is there for, and a killed run passes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from internevo_engine import _core
from internevo_engine.__main__ import main
from internevo_engine.chaos.commands import report
from internevo_engine.chaos.history import problems
from internevo_engine.chaos.trial import MARK, Start, Trial, draw, kinds, run

KILL = Trial(0, 0, "update", 1, "step=4", "kill", "1/1/2")


def test_a_trial_is_a_function_of_its_seed_and_number() -> None:
    assert [draw(1, n) for n in range(50)] == [draw(1, n) for n in range(50)]
    assert [draw(1, n).plan for n in range(50)] != [draw(2, n).plan for n in range(50)]


def test_every_kind_takes_its_turn_and_every_plan_can_be_read(tmp_path: Path) -> None:
    trials = [draw(3, n) for n in range(len(kinds()))]
    assert {(trial.point, trial.action.split("=")[0]) for trial in trials} == set(kinds())
    for trial in trials:
        _core.arm_faults(trial.plan, 1, trial.rank, str(tmp_path / "log"))
    _core.disarm_faults()


def test_the_report_counts_trials_by_fault() -> None:
    record = {"point": "write", "action": "errno=5", "fired": True, "ok": True}
    lines = report([record, record | {"action": "errno=28", "ok": False}, record | {"fired": False}]).splitlines()
    assert lines[1].split() == ["write", "errno", "3", "2", "1"]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Start]]:
    """Golden run, a trial with a kill in the middle of an update, and how its starts ended."""
    root = tmp_path_factory.mktemp("chaos")
    assert [start.code for start in run(None, root / "golden")] == [0]
    starts = run(KILL, root / "trial")
    return root / "golden/run", root / "trial", starts


@pytest.mark.slow
def test_a_rank_killed_in_the_middle_of_an_update_costs_no_bit(trial: tuple[Path, Path, list[Start]]) -> None:
    golden, folder, starts = trial
    assert (folder / "run.rank1.faults").read_text() == f"{KILL.plan}\n"
    assert problems(KILL, starts, folder, golden) == []


def edit(name: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text()))


def damage(folder: Path) -> None:
    path = next((folder / "run/checkpoints").glob("step-6/rank-*"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")


DEFECTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a damaged checkpoint": (damage, "does not verify"),
    "a lost checkpoint": (lambda f: (f / "run/checkpoints/step-6").rename(f / "run/lost"), "is not there"),
    "a step twice": (edit("run/metrics.jsonl", lambda t: t + t.splitlines()[-1] + "\n"), "once each"),
    "a sample twice": (edit("run/metrics.jsonl", lambda t: t.replace('"tokens": 768', '"tokens": 800')), "sample"),
    "another bit": (edit("run/fingerprint.jsonl", lambda t: t.replace('"loss": "0x1.0', '"loss": "0x1.1')), "part at"),
    "a batch left out": (
        lambda f: (f / "run/skipped.jsonl").write_text('{"step": 1}\n'),
        "1 batches were left out",
    ),
    "a draft": (lambda f: (f / "run/checkpoints/step-8.tmp-1-1").mkdir(), "is left"),
    "a folder of ranks": (lambda f: (f / "tmp/internevo-x").mkdir(), "is left"),
}


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_judge_sees_each_defect(trial: tuple[Path, Path, list[Start]], tmp_path: Path, defect: str) -> None:
    golden, folder, starts = trial
    subprocess.run(["cp", "-r", folder, tmp_path / "copy"], check=True)
    make, says = DEFECTS[defect]
    make(tmp_path / "copy")
    found = problems(KILL, starts, tmp_path / "copy", golden)
    assert any(says in text for text in found), found


@pytest.mark.slow
def test_the_judge_sees_processes_codes_and_a_culprit_without_a_name(trial: tuple[Path, Path, list[Start]]) -> None:
    golden, folder, _ = trial
    environment = os.environ | {MARK: (folder / "mark").read_text()}
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    found = problems(KILL, [Start(3, "error: something"), Start(70, "")], folder, golden)
    sleeper.kill()
    sleeper.wait()
    for says in ("code 3 is none of", "did not come to its end", "rank 1, is not named", f"process {sleeper.pid} is"):
        assert any(says in text for text in found), found


@pytest.mark.slow
def test_a_campaign_goes_on_where_it_ended_and_replays_one_trial(tmp_path: Path, capsys) -> None:
    command = ["chaos", "run", "--seed", "1", "--out", str(tmp_path), "--trials"]
    for trials in ("1", "2"):
        assert main([*command, trials]) == 0
    records = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [record["number"] for record in records] == [0, 1]
    assert main(["chaos", "replay", "1", "1", "--out", str(tmp_path)]) == 0
    assert draw(1, 1).plan in capsys.readouterr().out.splitlines()[-1]
