"""How long a background save blocks training: the snapshot of 64 MiB of optimizer states, beside a plain copy of them.

python -m pytest bench/test_checkpoint.py
"""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from internevo_engine.checkpoint.manifest import PlanEntry
from internevo_engine.checkpoint.snapshot import Snapshot
from internevo_engine.checkpoint.view import ShardedView, Stretch
from internevo_engine.plan.params import Param

STATES = ("master", "exp_avg", "exp_avg_sq")
NUMEL = (64 << 20) // 4 // len(STATES)


@pytest.fixture
def states() -> list[torch.Tensor]:
    torch.set_num_threads(1)
    return [torch.randn(NUMEL) for _ in STATES]


def view_of(states: list[torch.Tensor], num_params: int) -> ShardedView:
    length = NUMEL // num_params
    params = tuple(Param(f"layers.{number}.weight", (length,), number) for number in range(num_params))
    cuts = ((number, number * length) for number in range(num_params))
    stretches = tuple(Stretch(n, 0, tuple(state[begin : begin + length] for state in states)) for n, begin in cuts)
    return ShardedView(params, STATES, stretches, True, PlanEntry(world=1, param=1, grad=1, optim=1, dtype="fp32"))


def test_plain_copy(benchmark: BenchmarkFixture, states: list[torch.Tensor]) -> None:
    kept = [torch.zeros_like(state) for state in states]
    benchmark(lambda: [target.copy_(source) for target, source in zip(kept, states, strict=True)])


@pytest.mark.parametrize("num_params", [10, 200])
def test_snapshot(benchmark: BenchmarkFixture, states: list[torch.Tensor], num_params: int) -> None:
    benchmark(Snapshot(view_of(states, num_params)).take)
