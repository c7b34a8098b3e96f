"""What the package must not know: the calls that turn what is read or received into code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "internevo_engine"
MODULES = sorted(PACKAGE.rglob("*.py"))
UNPICKLES = PACKAGE / "interop/unpickle.py"
"""torch.load(weights_only=True), in a process of its own, on the user's word."""

MODULES_THAT_RUN_CODE = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"os.system", "os.popen", "torch.load", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
PARTS = ("_object_list", "gather_object", "allow_pickle", "trust_remote_code")
"""Of names: collectives that unpickle what peers send, and switches that let files bring code."""


def forbidden(tree: ast.AST) -> Iterator[str]:
    """What a module does that it must not, as its source says it."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (n.name for n in names if n.name.split(".")[0] in MODULES_THAT_RUN_CODE)
            case ast.ImportFrom(module=str(module), names=names):
                yield from {module} if module.split(".")[0] in MODULES_THAT_RUN_CODE else ()
                yield from (f"{module}.{n.name}" for n in names if f"{module}.{n.name}" in CALLS)
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                yield name
            case ast.Call(func=ast.Attribute() as function) if ast.unparse(function) in CALLS:
                yield ast.unparse(function)
            case ast.keyword(arg="shell"):
                yield "shell="
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=False)):
                pass
            case ast.keyword(arg=str(name)) | ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield from {name} if any(part in name for part in PARTS) else ()
            case _:
                pass


BAD = [
    "import pickle", "from pickle import loads", "import marshal as m", "import shelve", "eval(text)", "exec(text)",
    "__import__(name)", "import os\nos.system(command)", "from os import system", "subprocess.run(c, shell=True)",
    "subprocess.run(c, shell=flag)", "torch.load(path)", "from torch import load", "yaml.unsafe_load(text)",
    "yaml.load(text)", "dist.broadcast_object_list(x)", "dist.all_gather_object(x, y)", "np.load(p, allow_pickle=True)",
    "from torch.distributed import gather_object", "AutoModel.from_pretrained(p, trust_remote_code=True)",
]  # fmt: skip


@pytest.mark.parametrize("source", BAD)
def test_the_gate_sees_what_it_is_for(source: str) -> None:
    assert list(forbidden(ast.parse(source)))


@pytest.mark.parametrize("source", ["model.eval()", "re.compile(p)", "json.loads(t)", "np.load(p, allow_pickle=False)"])
def test_the_gate_lets_others_pass(source: str) -> None:
    assert not list(forbidden(ast.parse(source)))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_that_is_read_or_received_becomes_code(path: Path) -> None:
    found = list(forbidden(ast.parse(path.read_text())))
    assert found == (["torch.load"] if path == UNPICKLES else []), path


def test_the_only_unpickler_admits_tensors_alone_and_nobody_imports_it() -> None:
    calls = [n for n in ast.walk(ast.parse(UNPICKLES.read_text())) if isinstance(n, ast.Call)]
    (load,) = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert {k.arg: ast.unparse(k.value) for k in load.keywords}["weights_only"] == "True"
    for path in MODULES:
        names = [n.module or "" for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        assert "internevo_engine.interop.unpickle" not in names, path


def test_the_trust_boundary_is_written_down_without_a_person_or_an_address() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    assert "## What is trusted" in text
    assert "security advisories" in text
    assert "@" not in text
