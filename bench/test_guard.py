"""What run.guard costs a rank, in its own time: checksums at memory speed, beside a plain read and AdamW; and a step of
the 9M decoder without and with the audit of run.guard=full.

python -m pytest bench/test_guard.py
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workload import Settings
from internevo_engine.engine import Engine
from internevo_engine.models.loss import token_loss
from internevo_engine.runtime.extension import checksums, load_extension

NUMEL = (64 << 20) // 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    load_extension()
    torch.set_num_threads(1)


def test_plain_read(benchmark: BenchmarkFixture) -> None:
    x = torch.randn(NUMEL)
    benchmark(x.sum)


def test_checksum(benchmark: BenchmarkFixture) -> None:
    x = torch.randn(NUMEL)
    benchmark(checksums, x)


@pytest.mark.parametrize("audit", [False, True])
def test_step(benchmark: BenchmarkFixture, audit: bool) -> None:
    settings = Settings(size="9M")
    engine = Engine(settings.make_model(torch.device("cpu")), token_loss, audit=audit, graph={"compile": "eager"})
    batches = settings.micro_batches(0, 0, 1)
    benchmark.pedantic(engine.step, args=(batches,), rounds=10, warmup_rounds=2)
    engine.close()
