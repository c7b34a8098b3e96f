"""Forecasts of captured models: the closed form against the simulated Program, and the command line."""

import json
from pathlib import Path

import pytest

from internevo_engine.__main__ import main
from internevo_engine.config.load import load_config
from internevo_engine.models.families import parameters
from internevo_engine.plan.calibrate import Ensemble
from internevo_engine.plan.closed_form import System
from internevo_engine.plan.cluster import PRESETS
from internevo_engine.plan.estimate import Workload, estimate
from internevo_engine.schedule.forecast import forecast

CONFIGS = Path(__file__).parents[2] / "configs"
A100 = PRESETS["a100-80g-4x100g"]
ONE = Ensemble((System(),), 0.01, ())
SMALL = ["model.layers=8"]


@pytest.mark.parametrize(
    ("sizes", "world"), [((1, 1, 8), 8), ((1, 1, 8), 64), ((1, 1, 64), 64), ((8, 8, 8), 64), ((1, 8, 8), 1024)]
)
def test_the_closed_form_is_within_ten_percent_of_the_simulated_program(
    sizes: tuple[int, int, int], world: int
) -> None:
    zero = [f"zero.{name}={size}" for name, size in zip(("param", "grad", "optim"), sizes, strict=True)]
    config = load_config(str(CONFIGS / "7B.yaml"), [*SMALL, *zero])
    found = forecast(config, A100, world, ONE)
    work = Workload(config, parameters(config.model), found.plan.dtype)
    assert estimate(work, found.plan.levels, A100, System(), world).total == pytest.approx(
        found.step_s.middle, rel=0.10
    )


def test_plan_names_winner_runner_up_and_why_others_fell(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["plan", str(CONFIGS / "7B.yaml"), *SMALL, "--cluster", "a100-80g-4x100g", "--gpus", "64"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "best " in text
    assert "runner-up " in text
    assert "use zero.param=" in text
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["winner"]["step_s"]["high"] <= found["runner_up"]["step_s"]["high"]
    assert found["fitting"] <= found["tried"]


def test_run_and_scaling_predict_with_a_band(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = [str(CONFIGS / "7B.yaml"), *SMALL]
    assert main(["simulate", "run", *config, "--gpus", "1024", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    step = found["step_s"]
    assert step["low"] < step["middle"] < step["high"]
    assert sum(found["causes_s"].values()) == pytest.approx(step["middle"], rel=0.05)
    plot = tmp_path / "scaling.png"
    assert main(["simulate", "scaling", *config, "--plot", str(plot)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [str(8 * 2**n) for n in range(12)]
    assert plot.stat().st_size > 10_000


def test_a_measured_cluster_needs_no_published_run(capsys: pytest.CaptureFixture[str]) -> None:
    config = [str(CONFIGS / "demo.yaml"), "zero.optim=2"]
    assert main(["simulate", "run", *config, "--cluster", "lab", "--gpus", "4"]) == 0
    assert "far reduce" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["simulate"], 2, "usage: python -m internevo_engine simulate run CONFIG"),
        (["plan", str(CONFIGS / "7B.yaml"), "--cluster", "nowhere"], 2, "neither a file nor a preset"),
        (["plan", str(CONFIGS / "7B.yaml"), "graph.mode=hooks"], 2, "use graph.mode=graph"),
    ],
)
def test_mistakes_get_one_line(arguments: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert text in captured.out + captured.err
