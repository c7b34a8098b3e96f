"""schedule: `python -m internevo_engine plan ...` and `simulate ...`: the planner and the simulator for people and,
with --json, for tools.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config
from internevo_engine.errors import PlanError
from internevo_engine.plan.calibrate import Band
from internevo_engine.plan.cluster import PRESETS, Cluster, load_cluster
from internevo_engine.plan.published import read_runs
from internevo_engine.plan.score import Prediction, Scalar, Score, score
from internevo_engine.plan.search import Choice, Priced
from internevo_engine.schedule.forecast import Forecast, calibration_of, choose, forecast
from internevo_engine.schedule.report import bytes_sent
from internevo_engine.units import format_bytes, format_seconds

WORLDS = tuple(8 * 2**n for n in range(12))
"""8 to 16,384."""


def plan(arguments: Sequence[str]) -> int:
    """Choose a plan; returns the exit code."""
    asked = _parse(arguments, "plan", "Choose group sizes, micro-batches, recomputation and buckets.")
    config, cluster = _config(asked), load_cluster(asked.cluster)
    choice = choose(config, cluster, asked.gpus, calibration_of(cluster))
    print(json.dumps(_choice_dict(choice), indent=1) if asked.json else describe_choice(choice, cluster, asked.gpus))
    return 0


def simulate(arguments: Sequence[str]) -> int:
    """One of the ways to simulate; returns the exit code."""
    match arguments:
        case ["run", *rest]:
            return _run(rest)
        case ["scaling", *rest]:
            return _scaling(rest)
        case ["score", *rest]:
            return _score(rest)
    print("usage: python -m internevo_engine simulate run CONFIG [--cluster NAME|FILE] [--gpus N] [--json] [key=value]")
    print("       python -m internevo_engine simulate scaling CONFIG [--cluster NAME|FILE] [--plot FILE] [--json]")
    print("       python -m internevo_engine simulate score ROWS.csv [--fit ROWS.csv] [--json]")
    return 2


def _run(arguments: Sequence[str]) -> int:
    asked = _parse(arguments, "simulate run", "Predict a step of the config as it stands.")
    cluster = load_cluster(asked.cluster)
    found = forecast(_config(asked), cluster, asked.gpus, calibration_of(cluster))
    print(json.dumps(_forecast_dict(found), indent=1) if asked.json else describe_forecast(found))
    return 0


def _scaling(arguments: Sequence[str]) -> int:
    asked = _parse(arguments, "simulate scaling", "Predict throughput from 8 to 16,384 ranks.")
    config, cluster = _config(asked), load_cluster(asked.cluster)
    ensemble = calibration_of(cluster)
    found = {world: forecast(config, cluster, world, ensemble) for world in WORLDS}
    if asked.json:
        print(json.dumps({world: _forecast_dict(each) for world, each in found.items()}, indent=1))
    else:
        print(describe_scaling(found))
    if asked.plot:
        draw_scaling(found, Path(asked.plot))
    return 0


def _score(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m internevo_engine simulate score")
    parser.add_argument("rows", help="CSV file with the columns of published_throughput.csv")
    parser.add_argument("--fit", help="rows to fit with; without it, those that come with the package")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    runs, skipped = read_runs(Path(asked.rows))
    to_fit = read_runs(Path(asked.fit))[0] if asked.fit else None
    found, predictions = score(runs, to_fit, skipped)
    print(json.dumps(found.as_dict(), indent=1) if asked.json else describe_score(found, predictions))
    return 0


def _parse(arguments: Sequence[str], verb: str, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"python -m internevo_engine {verb}", description=description)
    parser.add_argument("config", metavar="CONFIG")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*")
    parser.add_argument("--cluster", default="a100-80g-4x100g", help=f"a YAML file, or one of {', '.join(PRESETS)}")
    parser.add_argument("--gpus", type=int, default=8, metavar="N")
    parser.add_argument("--json", action="store_true")
    if verb == "simulate scaling":
        parser.add_argument("--plot", metavar="FILE", help="draw it, as PNG or SVG")
    return parser.parse_intermixed_args(arguments)


def _config(asked: argparse.Namespace) -> Config:
    config = load_config(asked.config, asked.overrides)
    if config.graph.mode != "graph":
        raise PlanError(f"graph.mode={config.graph.mode} has no Program to simulate; use graph.mode=graph")
    return config


def describe_choice(choice: Choice, cluster: Cluster, world: int) -> str:
    """The planner's answer as a person reads it."""
    lines = [
        f"{choice.num_fitting} of {choice.num_tried} plans fit {world} ranks of {cluster.memory_gb:g} GB; "
        "the best few were simulated",
        f"best         {_priced_line(choice.winner)}",
    ]
    if choice.runner_up:
        behind = choice.runner_up.step_s.high / choice.winner.step_s.high - 1
        lines.append(f"runner-up    {_priced_line(choice.runner_up)}: {behind:+.1%}")
    config = choice.winner.candidate.config
    lines += [f"  {name:<28} {reason}" for name, reason in choice.fallen.items()]
    zero, data = config.zero, config.data
    lines.append(
        f"use zero.param={zero.param} zero.grad={zero.grad} zero.optim={zero.optim} "
        f"data.micro_batch={data.micro_batch} data.grad_accum={data.grad_accum} "
        f"graph.recompute={config.graph.recompute} comm.bucket_mb={config.comm.bucket_mb:g}"
    )
    return "\n".join(lines)


def _priced_line(priced: Priced) -> str:
    memory = format_bytes(priced.candidate.memory_bytes)
    return f"{priced.candidate.name}: {_band(priced.step_s)} a step, {memory} a rank"


def _band(band: Band) -> str:
    return f"{format_seconds(band.middle)} ({format_seconds(band.low)} to {format_seconds(band.high)})"


def describe_forecast(found: Forecast) -> str:
    """All figures of one plan."""
    rate, memory = found.tokens_per_rank_s, found.plan.memory
    spent = [(cause, seconds) for cause, seconds in found.causes.items() if seconds]
    total = sum(seconds for _, seconds in spent)
    links = {level.name: level.link for level in found.program.levels}
    sent = bytes_sent(found.program).items()
    return "\n".join(
        [
            f"step      {_band(found.step_s)}, 9 times in 10",
            f"speed     {rate.middle:,.0f} tokens a rank and second ({rate.low:,.0f} to {rate.high:,.0f}), "
            f"{found.mfu:.1%} of peak FLOPs",
            f"program   {found.program.hash[:16]}, {len(found.program.instructions)} instructions",
            f"memory    {format_bytes(memory.total)} a rank, {format_bytes(memory.states)} of it states",
            *(f"  sent over {name:<4} {links.get(name, 'world'):<5} {format_bytes(n)}" for name, n in sent),
            "the step by what it is spent on (transfers: only what is not hidden)",
            *(f"  {cause:<12} {format_seconds(seconds):>8} {seconds / total:6.1%}" for cause, seconds in spent),
        ]
    )


def describe_scaling(found: dict[int, Forecast]) -> str:
    """A line for each number of ranks; simulated, every one."""
    first = next(iter(found.values())).tokens_per_rank_s.middle
    lines = [f"{'ranks':>6} {'step':>8} {'tokens/rank/s':>13} {'band':>13} {'scaling':>8} {'MFU':>6} {'exposed':>8}"]
    for world, each in found.items():
        rate = each.tokens_per_rank_s
        exposed = 1 - each.causes["compute"] / sum(each.causes.values())
        lines.append(
            f"{world:>6} {format_seconds(each.step_s.middle):>8} {rate.middle:>13,.0f} "
            f"{f'{rate.low:,.0f}-{rate.high:,.0f}':>13} {rate.middle / first:>8.1%} {each.mfu:>6.1%} {exposed:>8.1%}"
        )
    return "\n".join(lines)


def draw_scaling(found: dict[int, Forecast], path: Path) -> None:
    """Tokens per rank and second over ranks, with the band."""
    from matplotlib.figure import Figure

    worlds, rates = list(found), [each.tokens_per_rank_s for each in found.values()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(worlds, [r.low for r in rates], [r.high for r in rates], alpha=0.25, label="9 times in 10")
    axes.plot(worlds, [r.middle for r in rates], "o-", label="simulated")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ranks")
    axes.set_ylabel("tokens a rank and second")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def describe_score(found: Score, predictions: Sequence[Prediction]) -> str:
    """The score, the worst rows, what was skipped."""
    worst = sorted(predictions, key=lambda each: -abs(each.error))[:8]
    lines = [
        f"{found.rows} rows, {found.also_fitted} of them fitted too; {len(found.skipped)} skipped",
        f"error  mean {found.mape:.2f} %, median {found.median:.2f} %, largest {found.max:.2f} %, "
        f"bias {found.bias:+.2f} %",
        f"       {found.trivial_mape or 0:.2f} % for the guess that nothing changes with the number of GPUs",
        f"in the 90 % band: {found.in_band:.0f} % of the rows",
        *(_scalar_line(name, scalar) for name, scalar in found.scalars.items()),
        *(f"  {each.run.id:<28} {each.run.tokens_per_gpu_s:>8,.0f} published, {each.error:+.1%}" for each in worst),
        *(f"  {name:<28} skipped: {reason}" for name, reason in found.skipped.items()),
    ]
    return "\n".join(lines)


def _scalar_line(name: str, scalar: Scalar) -> str:
    origin = f"{scalar.num_rows} rows to fit" if scalar.held_out else f"the {scalar.num_rows} scored rows themselves"
    return f"scalar {scalar.factor:.3f} from {origin}: {name}"


def _choice_dict(choice: Choice) -> dict[str, Any]:
    def of(priced: Priced | None) -> dict[str, Any] | None:
        if priced is None:
            return None
        config = priced.candidate.config
        return {
            "zero": config.zero.model_dump(),
            "micro_batch": config.data.micro_batch,
            "grad_accum": config.data.grad_accum,
            "recompute": config.graph.model_dump()["recompute"],
            "bucket_mb": config.comm.bucket_mb,
            "memory_bytes": priced.candidate.memory_bytes,
            "step_s": asdict(priced.step_s),
        }

    return {
        "winner": of(choice.winner),
        "runner_up": of(choice.runner_up),
        "tried": choice.num_tried,
        "fitting": choice.num_fitting,
        "fallen": dict(choice.fallen),
    }


def _forecast_dict(found: Forecast) -> dict[str, Any]:
    return {
        "program": found.program.hash,
        "step_s": asdict(found.step_s),
        "tokens_per_rank_s": asdict(found.tokens_per_rank_s),
        "mfu": found.mfu,
        "causes_s": dict(found.causes),
        "bytes_sent": bytes_sent(found.program),
        "memory_bytes": asdict(found.plan.memory),
    }
