"""The layout, guarded: imports point down only, floors 0 to plan know no torch, files stay readable."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "internevo_engine"
FLOORS = (
    {"errors", "units", "program", "faults", "_core"},
    {"config"},
    {"plan"},
    {"models", "optim", "data"},
    {"graph"},
    {"schedule"},
    {"runtime"},
    {"checkpoint", "interop"},
    {"engine"},
    {"loop"},
    {"serve"},
    {"run", "chaos"},
    {"__main__"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    own = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "internevo_engine" or len(parts) == 1:
            continue
        other = parts[1]
        assert other in FLOOR_OF, f"{path} imports {name}, which stands on no floor"
        assert other == own or FLOOR_OF[other] < FLOOR_OF[own], f"{path} imports {name}, which is not below it"


def test_every_module_stands_on_a_floor():
    assert {room(path) for path in MODULES} <= set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_and_stays_readable(path):
    if path.name == "__init__.py":
        return
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
    assert len(text.splitlines()) <= 300, f"{path} tells more than one story"


def test_no_room_is_called_utils():
    names = {path.stem for path in [*PACKAGE.rglob("*.py"), *(ROOT / "csrc").rglob("*")]}
    assert not names & {"utils", "util", "common", "helpers", "misc", "manager"}


def test_config_plan_and_families_know_no_torch():
    lower = [p for p in MODULES if FLOOR_OF[room(p)] <= FLOOR_OF["plan"]]
    for path in [*lower, PACKAGE / "models/families.py", PACKAGE / "models/flops.py"]:
        assert not any(name.split(".")[0] == "torch" for name in imports(path)), path


def test_the_command_line_starts_without_torch():
    code = "import sys, internevo_engine.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_bindings_includes_pybind_and_core_and_kernels_know_no_torch():
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix not in (".h", ".cpp", ".cu"):
            continue
        includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        if path.name != "bindings.cpp":
            assert not any("pybind11" in line for line in includes), path
        if path.relative_to(ROOT / "csrc").parts[0] in ("core", "kernels") or path.suffix == ".cu":
            assert not any("torch" in line or "ATen" in line or "c10" in line for line in includes), path


def test_the_core_install_stays_light():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [text.split(">")[0].split("[")[0] for text in project["dependencies"]]
    assert names == ["torch", "numpy", "pydantic", "PyYAML", "rich", "safetensors", "sentencepiece", "matplotlib"]
    extras = project["optional-dependencies"]
    assert list(extras) == ["flash", "cu12", "parquet", "hf", "chat", "eval", "track", "dev", "docs"]
    text = (ROOT / "docs/install.md").read_text()
    assert all(f"`[{name}]`" in text for name in extras)
