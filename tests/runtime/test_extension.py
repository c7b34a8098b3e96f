"""Loading the compiled libraries: what a user reads when they are missing, broken, or made for another torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from internevo_engine import _core
from internevo_engine.errors import EngineError
from internevo_engine.runtime import extension


def test_libraries_are_built_for_this_torch() -> None:
    extension.load_extension()
    assert torch.__version__ == _core.TORCH_VERSION


def test_loading_twice_is_loading_once() -> None:
    extension.load_extension()
    extension.load_extension()
    assert extension.load_extension.cache_info().misses == 1


def test_core_needs_no_torch() -> None:
    code = "import sys, internevo_engine._core; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_library_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "find_spec", lambda _name: None)
    with pytest.raises(EngineError, match=r"internevo_engine/_ops is missing; build it .* 'pip install \.'"):
        extension.library_path("_ops")


def test_a_broken_library_says_how_to_build_it(tmp_path: Path) -> None:
    library = tmp_path / "_ops.so"
    library.write_bytes(b"not a library")
    with pytest.raises(EngineError, match=r"_ops\.so can't be loaded .* 'pip install \.'"):
        extension.load_library(str(library))


def test_another_torch_release_is_refused_and_a_patch_release_is_not() -> None:
    extension.check_torch("2.13.0+cpu", "2.13.1+cu130")
    with pytest.raises(EngineError, match=r"built for torch 2\.13\.0\+cpu can't run with torch 2\.14\.0; build it"):
        extension.check_torch("2.13.0+cpu", "2.14.0")
