"""From process start to the end of the first step: a captured step against torch.compile, cold and warm.

    python -m pytest bench/test_compile.py [--long]

Each round is a process of its own; a cold one has an empty cache folder.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.job import ROOT

pytestmark = pytest.mark.own_processes
COLD_ROUNDS, WARM_ROUNDS = 1, 5
PEERS = ("engine", "local-compiled")


def first_step(peer: str, layers: int, cache: Path) -> None:
    command = [sys.executable, "-m", "bench.peers", peer, "--layers", str(layers), "--warm-up", "0", "--steps", "1"]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("layers", [8, pytest.param(32, marks=pytest.mark.long)])
@pytest.mark.parametrize("peer", PEERS)
def test_cold(benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory, peer: str, layers: int) -> None:
    def fresh() -> tuple[tuple[str, int, Path], dict[str, object]]:
        return (peer, layers, tmp_path_factory.mktemp("cache")), {}

    benchmark.extra_info.update(peer=peer, layers=layers)
    benchmark.pedantic(first_step, setup=fresh, rounds=COLD_ROUNDS)


@pytest.mark.parametrize("layers", [8, pytest.param(32, marks=pytest.mark.long)])
@pytest.mark.parametrize("peer", PEERS)
def test_warm(benchmark: BenchmarkFixture, tmp_path: Path, peer: str, layers: int) -> None:
    first_step(peer, layers, tmp_path)
    benchmark.extra_info.update(peer=peer, layers=layers)
    benchmark.pedantic(first_step, args=(peer, layers, tmp_path), rounds=WARM_ROUNDS)
