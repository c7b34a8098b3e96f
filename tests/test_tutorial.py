"""The tutorial's commands, run as they are written, and its notebook."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = re.findall(r"^    ((?:python|echo|curl) .*)$", (ROOT / "docs/tutorial.md").read_text(), re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a clone's files are, and where nothing has been made yet."""
    for name in ("configs", "docs", "internevo_engine"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_there_are_ten_commands() -> None:
    assert len(COMMANDS) == 10


@pytest.mark.slow
def test_the_ten_commands_lead_from_text_to_a_chat(folder: Path) -> None:
    script = "\n".join(["set -e", *(re.sub(r"\bpython ", f"{sys.executable} ", line) for line in COMMANDS), "kill %1"])
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    reply = json.loads(done.stdout.splitlines()[-1])
    assert reply["choices"][0]["message"]["content"]
    assert reply["model"] == "tutorial"
    found = re.search(r"bits per byte  ([\d.]+)\n(.*)wrote models/tutorial", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:]
    assert float(found[1]) < 3
    assert len(found[2].split()) > 3


@pytest.mark.slow
def test_the_notebook_runs(folder: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat and nbclient are not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbformat and nbclient are not installed")
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "bits per byte of the tutorial's text" in printed


def test_the_notebook_is_valid_and_holds_no_output() -> None:
    notebook = json.loads((ROOT / "docs/tutorial.ipynb").read_text())
    assert (notebook["nbformat"], len({cell["id"] for cell in notebook["cells"]})) == (4, len(notebook["cells"]))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")
