"""A learning rate is a pure function of the step."""

from itertools import pairwise
from math import cos, pi

import pytest

from internevo_engine.config.schema import OptimConfig
from internevo_engine.optim.schedules import learning_rate

BASE = {"lr": 1.0, "eta_min": 0.1}


def rates(num_steps: int, **keys) -> list[float]:
    optim = OptimConfig(**BASE, **keys)
    return [learning_rate(optim, step, num_steps) for step in range(num_steps)]


def test_init_steps_rest_at_zero_and_warm_up_is_linear():
    assert rates(100, init_steps=3, warmup_ratio=0.04)[:8] == pytest.approx(
        [0, 0, 0, 0.25, 0.5, 0.75, 1.0, 1.0], abs=1e-3
    )


def test_cosine_ends_at_eta_min():
    values = rates(100, warmup_ratio=0.1)
    assert values[9] == 1.0
    assert values[-1] == pytest.approx(0.1)
    assert values[54] == pytest.approx(0.1 + 0.9 * (1 + cos(pi / 2)) / 2)
    assert all(a > b for a, b in pairwise(values[9:]))


def test_wsd_is_stable_then_linear():
    values = rates(100, schedule="wsd", warmup_ratio=0.1, decay_ratio=0.2)
    assert set(values[9:80]) == {1.0}
    assert values[89] == pytest.approx(0.55)
    assert values[-1] == pytest.approx(0.1)


def test_constant_stays_and_no_warm_up_starts_high():
    assert set(rates(10, schedule="constant", warmup_ratio=0.0)) == {1.0}


def test_a_run_that_is_all_warm_up_is_legal():
    assert rates(4, warmup_ratio=1.0) == [0.25, 0.5, 0.75, 1.0]


def test_a_run_without_a_known_end_keeps_its_rate():
    optim = OptimConfig(lr=1e-3, init_steps=2)
    assert [learning_rate(optim, step, None) for step in (0, 1, 2, 10**6)] == [0.0, 0.0, 1e-3, 1e-3]
