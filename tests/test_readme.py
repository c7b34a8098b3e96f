"""The README's commands, run as they are written, and its facts held against the code."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (?:\$ )?((?:make|pip|python) .*?)(?:  +#.*)?$", README, re.MULTILINE)
IN_THIS_RUN = "make test"


def run(command: str, folder: Path) -> str:
    """Run a line of the README; `python` and `pip` are those of the environment under test."""
    command = re.sub(r"^(python|pip) ", lambda m: f"{sys.executable} {'-m pip ' if m[1] == 'pip' else ''}", command)
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the tracked files, with the environment that is under test."""
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_readme_names_these_commands():
    assert COMMANDS == [
        "make demo",
        IN_THIS_RUN,
        "pip install .",
        "python -m internevo_engine.run configs/demo.yaml launch.nproc=2 run.steps=20 run.dir=runs/two-ranks",
        "python -m internevo_engine.run configs/7B.yaml --dry-run --gpus 1024",
        "python -m internevo_engine doctor",
        "python -m internevo_engine.run configs/7B.yaml --dry-run --gpus 1024",
    ]


@pytest.mark.parametrize("command", sorted({c for c in COMMANDS if c.startswith("python")}))
def test_a_python_command_works_as_written(command, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    run(command, tmp_path)


def test_the_printed_plan_is_the_plan(tmp_path):
    output = run(f"python -m internevo_engine.run {ROOT}/configs/7B.yaml --dry-run --gpus 1024", tmp_path)
    for line in output.splitlines()[:-1]:
        assert f"    {line}\n" in README


def test_pip_install_works_under_build_isolation(clone, tmp_path_factory):
    """`pip install .` builds a wheel in isolation first; this builds it, and imports it from a folder of its own."""
    wheels = tmp_path_factory.mktemp("wheels")
    run(f"pip wheel --quiet --no-deps --wheel-dir {wheels} .", clone)
    target = tmp_path_factory.mktemp("target")
    run(f"pip install --quiet --no-deps --no-index --target {target} {next(wheels.glob('*.whl'))}", clone)
    code = "from internevo_engine.runtime import extension as e; e.load_extension(); print(e.__file__)"
    environment = os.environ | {"PYTHONPATH": str(target)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=environment, cwd=target, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(target))


def test_make_demo_works_as_written_and_twice():
    """In the clone under test, whose .venv is there already."""
    if not (ROOT / ".venv").exists():
        pytest.skip("not run by make: there is no .venv")
    shutil.rmtree(ROOT / "runs" / "demo", ignore_errors=True)
    first = run("make demo", ROOT)
    assert "the model wins by" in first
    assert "next: " in first
    assert (ROOT / "runs/demo/final/model.safetensors").exists()
    assert (ROOT / "runs/demo/loss.png").exists()
    assert "runs/demo is finished" in run("make demo", ROOT)
