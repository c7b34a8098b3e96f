"""From process start to the end of the first step: a captured step against torch.compile, cold and warm.

    python -m pytest bench/test_first_step.py

Each round is a process of its own; a cold one has an empty cache folder (with the precompiled header warm for both).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 5


def first_step(kind: str, layers: int, cache: Path) -> None:
    command = [sys.executable, "-m", "bench.one_step", kind, str(layers), "1"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(("kind", "layers"), [("engine", 32), ("compile", 32), ("engine", 8)])
def test_cold(benchmark, tmp_path_factory, kind, layers):
    def fresh() -> tuple[tuple[str, int, Path], dict[str, object]]:
        return (kind, layers, tmp_path_factory.mktemp("cache")), {}

    benchmark.extra_info.update(kind=kind, layers=layers)
    benchmark.pedantic(first_step, setup=fresh, rounds=ROUNDS)


@pytest.mark.parametrize("kind", ["engine", "compile"])
def test_warm(benchmark, tmp_path, kind):
    first_step(kind, 32, tmp_path)
    benchmark.extra_info.update(kind=kind, layers=32)
    benchmark.pedantic(first_step, args=(kind, 32, tmp_path), rounds=ROUNDS)
