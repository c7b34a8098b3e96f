"""plan: physical parameters from published runs, by least squares, with what the runs leave open. Hands an `Ensemble`
to whoever predicts: every figure is a middle and a band that should hold the truth 9 times in 10.

The error that is minimized is log(predicted / published throughput). A prior holds what the rows don't tell; what
a hop of a ring depends on can't be told at all, so each way is fitted and both are kept.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from internevo_engine.errors import DataError
from internevo_engine.plan.closed_form import System, tokens_per_gpu_s
from internevo_engine.plan.cost import Hops
from internevo_engine.plan.published import Run

Vector = NDArray[np.float64]

FITTED: Mapping[str, float] = {
    "gemm_efficiency": 0.15,
    "half_tokens": 0.4,
    "net_efficiency": 0.05,
    "congestion": 0.7,
    "hop_factor": 0.7,
    "jitter": 0.5,
    "broadcast_hop_us": 0.5,
    "tensor_parallel_us": 0.4,
}
"""What is fitted, and the deviation of its logarithm that the prior allows; its middle is System's default."""
HOPS: tuple[Hops, ...] = ("ranks", "nodes")
NOISE = 0.02
"""Relative deviation of a published figure from a model of a few parameters: InternEvo's own repetitions differ by up
to 1.6 %, and a fit to all its rows misses them by 1.9 %."""
DRAWS = 12
"""Members of the ensemble for each way of counting hops."""
ITERATIONS = 30
NINE_IN_TEN = 1.645
"""Deviations of a normal distribution to each side."""


@dataclass(frozen=True)
class Band:
    """A figure and the range that should hold the truth 9 times in 10."""

    middle: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float], residual: float) -> "Band":
        """Of an ensemble's positive values, each of which misses the truth by `residual`, relative, by itself."""
        logs = np.log(values)
        spread = NINE_IN_TEN * math.hypot(float(np.std(logs)), residual)
        middle = float(np.mean(logs))
        return Band(math.exp(middle), math.exp(middle - spread), math.exp(middle + spread))

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Ensemble:
    """Calibrations that the fitted runs allow, all of them alike."""

    members: tuple[System, ...]
    residual: float
    """Relative error that is left in the fitted runs."""
    rows: tuple[str, ...]
    """Ids of the runs that fixed it."""

    def tokens_per_gpu_s(self, run: Run) -> Band:
        return Band.of([tokens_per_gpu_s(run, member) for member in self.members], self.residual)

    @property
    def middle(self) -> System:
        """The members' mean, parameter by parameter, and the first way of counting hops."""
        means = {name: mean([getattr(m, name) for m in self.members]) for name in FITTED}
        return replace(self.members[0], **means)


def fit(runs: Sequence[Run], *, seed: int = 0) -> Ensemble:
    """What the runs tell of System's parameters.

    Raises:
        DataError: there are none.
    """
    if not runs:
        raise DataError("no row to fit that can be modelled; give rows of InternEvo's tables, such as those of 8 GPUs")
    generator = np.random.default_rng(seed)
    members: list[System] = []
    residuals: list[float] = []
    for hops in HOPS:
        start = System(hops=hops)
        found, covariance = _least_squares(runs, start)
        residuals.append(_deviation(_errors(runs, _system(start, found)), num_fitted=len(FITTED)))
        draws = generator.multivariate_normal(found, covariance, size=DRAWS, method="cholesky")
        members += [_system(start, draw) for draw in draws]
    return Ensemble(tuple(members), float(np.mean(residuals)), tuple(run.id for run in runs))


def _system(start: System, logs: Vector) -> System:
    """`start` with its fitted parameters multiplied by exp(logs)."""
    factors = zip(FITTED, np.exp(logs), strict=True)
    return replace(start, **{name: getattr(start, name) * float(factor) for name, factor in factors})


def _errors(runs: Sequence[Run], system: System) -> Vector:
    return np.array([math.log(tokens_per_gpu_s(run, system) / run.tokens_per_gpu_s) for run in runs])


def _least_squares(runs: Sequence[Run], start: System) -> tuple[Vector, Vector]:
    """Levenberg-Marquardt on the logarithms of the parameters: the most probable ones and their covariance."""
    widths = np.array(list(FITTED.values()))

    def residuals(logs: Vector) -> Vector:
        return np.concatenate([_errors(runs, _system(start, logs)) / NOISE, logs / widths])

    logs, damping = np.zeros(len(widths)), 1e-2
    now = residuals(logs)
    jacobian = _jacobian(residuals, logs, now)
    for _ in range(ITERATIONS):
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -jacobian.T @ now)
        trial = residuals(logs + step)
        if trial @ trial >= now @ now:
            damping *= 10
            continue
        done = now @ now - trial @ trial < 1e-6 * (now @ now)
        logs, now, damping = logs + step, trial, damping / 10
        jacobian = _jacobian(residuals, logs, now)
        if done:
            break
    return logs, np.asarray(np.linalg.inv(jacobian.T @ jacobian), dtype=np.float64)


def _jacobian(residuals: Callable[[Vector], Vector], logs: Vector, now: Vector) -> Vector:
    step = 1e-4
    return np.stack(
        [(residuals(logs + step * unit) - now) / step for unit in np.eye(len(logs))], axis=1, dtype=np.float64
    )


def _deviation(errors: Vector, *, num_fitted: int) -> float:
    """Of the errors that a fit left, with the freedom that it took given back; never below the source's own noise."""
    freedom = max(len(errors) - num_fitted, len(errors) / 3)
    return max(NOISE, float(np.sqrt(errors @ errors / freedom)))
