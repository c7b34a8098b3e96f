"""The optimizer's share of a step: norm, clip, AdamW and the bf16 parameter on one flat buffer, against torch.

    python -m pytest bench/test_optimizer.py [--benchmark-json=FILE]

Both are memory-bound. GB/s counts, for both, the bytes that the work needs: 34 per element, 4 for the norm and 30 for
the update; so their ratio is the ratio of their times. The yardstick is a plain copy of as many bytes.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from internevo_engine.runtime.extension import adamw_, load_extension, square_sum

NUMEL = 64 * 2**20
BYTES_PER_ELEMENT = 34
LR, BETA1, BETA2, EPS, WEIGHT_DECAY, CLIP = 1e-4, 0.9, 0.95, 1e-8, 0.1, 1.0

MakeStep = Callable[[Tensor, Tensor, Tensor], Callable[[], None]]


def ours(master: Tensor, grad: Tensor, param: Tensor) -> Callable[[], None]:
    load_extension()
    exp_avg, exp_avg_sq = torch.zeros_like(master), torch.zeros_like(master)
    settings = {"lr": LR, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "weight_decay": WEIGHT_DECAY}

    def step() -> None:
        scale = (CLIP / square_sum(grad).sqrt()).clamp(max=1.0).float().reshape(1)
        adamw_(master, exp_avg, exp_avg_sq, grad, param, scale, decayed_numel=NUMEL, step=1, **settings)

    return step


def torchs(master: Tensor, grad: Tensor, param: Tensor) -> Callable[[], None]:
    master.grad = grad
    betas = (BETA1, BETA2)
    optimizer = torch.optim.AdamW([master], lr=LR, betas=betas, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_([master], CLIP)
        optimizer.step()
        param.copy_(master)

    return step


def copy(master: Tensor, grad: Tensor, param: Tensor) -> Callable[[], None]:
    source = torch.ones(NUMEL * BYTES_PER_ELEMENT // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)

    def step() -> None:
        target.copy_(source)

    return step


@pytest.mark.parametrize("make_step", [ours, torchs, copy], ids=["ours", "torch", "copy"])
def test_clipped_adamw_with_bf16_output(benchmark: BenchmarkFixture, make_step: MakeStep) -> None:
    master, grad = torch.randn(NUMEL), torch.randn(NUMEL)
    step = make_step(master, grad, torch.empty(NUMEL, dtype=torch.bfloat16))
    benchmark.pedantic(step, rounds=20, warmup_rounds=3)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    assert benchmark.stats is not None
    benchmark.extra_info["GB_per_s"] = round(NUMEL * BYTES_PER_ELEMENT / benchmark.stats["median"] / 1e9, 1)
