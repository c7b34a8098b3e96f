"""plan: how well published runs are predicted. Takes runs, and those to fit with; hands on a `Score`.

The physical parameters come from InternEvo's rows alone. Any other system's series (a system, a model, a variant) gets
one scalar, for what of it is not modelled: from the rows to fit if it is among them, else from the scored rows
themselves, and the score says which.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from statistics import mean, median
from typing import Any

from internevo_engine.errors import DataError
from internevo_engine.plan.calibrate import Band, Ensemble, fit
from internevo_engine.plan.published import Run, read_runs

MODELLED_SYSTEM = "InternLM/InternEvo"
"""Its schedule was read from its code; no scalar."""


@dataclass(frozen=True)
class Scalar:
    """Published over predicted throughput of a series."""

    factor: float
    num_rows: int
    held_out: bool
    """False: it comes from the very rows that it is scored on."""


@dataclass(frozen=True)
class Prediction:
    """Of one run, in tokens per GPU and second."""

    run: Run
    predicted: Band

    @property
    def error(self) -> float:
        """Relative; positive: predicted too fast."""
        return self.predicted.middle / self.run.tokens_per_gpu_s - 1


@dataclass(frozen=True)
class Score:
    """Errors are relative to the published throughput, in percent; bias is the mean with its sign."""

    mape: float
    median: float
    max: float
    bias: float
    trivial_mape: float | None
    """Of predicting what the smallest GPU count of the same table reached, over the rows of more GPUs than that; null
    if there are none."""
    rows: int
    skipped: Mapping[str, str]
    """Id of a row that can't be modelled -> why."""
    in_band: float
    """Share of the rows inside their 90 % band, in percent."""
    also_fitted: int
    """Scored rows that were fitted too; 0: all are held out."""
    scalars: Mapping[str, Scalar]
    """By series."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def published_runs() -> list[Run]:
    """The rows that come with the package, of which InternEvo's fix the shipped calibration."""
    with as_file(files("internevo_engine.plan") / "published_throughput.csv") as path:
        return read_runs(path)[0]


def internevo_runs(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.system.startswith(MODELLED_SYSTEM)]


def predict(
    runs: Sequence[Run], ensemble: Ensemble, to_fit: Sequence[Run] = ()
) -> tuple[list[Prediction], dict[str, Scalar]]:
    """A prediction for each run, and the scalars used, by series."""
    scalars: dict[tuple[str, ...], Scalar] = {}
    for series in dict.fromkeys(run.series for run in runs if not run.system.startswith(MODELLED_SYSTEM)):
        fitted = [run for run in to_fit if run.series == series]
        ratios = [
            run.tokens_per_gpu_s / ensemble.tokens_per_gpu_s(run).middle
            for run in fitted or [run for run in runs if run.series == series]
        ]
        scalars[series] = Scalar(math.exp(mean(map(math.log, ratios))), len(ratios), held_out=bool(fitted))
    unscaled = Scalar(1, 0, held_out=True)
    predictions = [
        Prediction(run, _times(ensemble.tokens_per_gpu_s(run), scalars.get(run.series, unscaled).factor))
        for run in runs
    ]
    return predictions, {" / ".join(filter(None, series)): scalar for series, scalar in scalars.items()}


def _times(band: Band, factor: float) -> Band:
    return Band(band.middle * factor, band.low * factor, band.high * factor)


def score(
    runs: Sequence[Run], to_fit: Sequence[Run] | None, skipped: Mapping[str, str]
) -> tuple[Score, list[Prediction]]:
    """Predict `runs` with what `to_fit` tells; None: with what the package's own rows tell.

    Raises:
        DataError: nothing to score.
    """
    if not runs:
        first = "".join(f"; {name}: {reason}" for name, reason in list(skipped.items())[:1])
        raise DataError(f"none of {len(skipped)} rows can be modelled{first}")
    known = internevo_runs(to_fit or ()) or internevo_runs(published_runs())
    predictions, scalars = predict(runs, fit(known), to_fit or ())
    errors = [each.error * 100 for each in predictions]
    fitted = {run.id for run in known} | {run.id for run in to_fit or ()}
    return (
        Score(
            mape=mean(map(abs, errors)),
            median=median(map(abs, errors)),
            max=max(map(abs, errors)),
            bias=mean(errors),
            trivial_mape=_trivial_mape(runs, [*runs, *(to_fit or ())]),
            rows=len(runs),
            skipped=skipped,
            in_band=100 * mean(each.predicted.holds(each.run.tokens_per_gpu_s) for each in predictions),
            also_fitted=sum(run.id in fitted for run in runs),
            scalars=scalars,
        ),
        predictions,
    )


def _trivial_mape(runs: Sequence[Run], known: Sequence[Run]) -> float | None:
    smallest: dict[tuple[object, ...], Run] = {}
    for run in sorted(known, key=lambda run: -run.gpus):
        smallest[_but_gpus(run)] = run
    guesses = [(run, smallest[_but_gpus(run)]) for run in runs]
    errors = [
        abs(guess.tokens_per_gpu_s / run.tokens_per_gpu_s - 1) * 100 for run, guess in guesses if guess.gpus < run.gpus
    ]
    return mean(errors) if errors else None


def _but_gpus(run: Run) -> tuple[object, ...]:
    """What is equal in runs that differ in the number of GPUs alone; what all ranks share stays shared by all."""
    groups = (run.zero_param, run.zero_grad, run.zero_optim)
    relative = tuple("world" if size == run.data_parallel > run.cluster.ranks_per_node else size for size in groups)
    return (*run.series, run.micro_batch, run.seq_len, run.grad_accum, run.tensor_parallel, run.recompute, relative)
