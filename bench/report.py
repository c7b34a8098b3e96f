"""What `make bench` leaves behind: a table and a plot of one run of the suites, with command, machine and commit.

    python -m bench.report build/bench.json         as pytest --benchmark-json wrote it

Hands on bench/results/COMMIT.md and COMMIT.png.
"""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.job import ROOT

RESULTS = ROOT / "bench/results"
COLUMNS = {
    "ratio_to_limit": "of the limit",
    "engine_speedup": "engine is faster by",
    "loss_difference": "loss differs by",
    "resident_bytes": "bytes resident",
    "bytes_sent_by_host": "bytes sent by a host",
    "bytes_planned_by_host": "bytes planned",
}
"""What a table shows of extra_info, where a row has it."""

Row = Mapping[str, Any]


def main(argv: Sequence[str]) -> None:
    run: Row = json.loads(Path(argv[0]).read_text())
    RESULTS.mkdir(exist_ok=True)
    name = run["commit_info"]["id"][:10]
    (RESULTS / f"{name}.md").write_text(table(run, f"{name}.png"))
    plot(run["benchmarks"], RESULTS / f"{name}.png")
    print(f"wrote {RESULTS / name}.md and .png")


def table(run: Row, picture: str) -> str:
    """Markdown."""
    commit, machine = run["commit_info"], run["machine_info"]
    processor = f"{machine['cpu'].get('brand_raw', platform.machine())}, {machine['cpu'].get('count')} CPUs"
    changed = ", with uncommitted changes" if commit["dirty"] else ""
    head = [
        f"# Benchmarks of {commit['id'][:10]}{changed}",
        "",
        f"`{run['command']}`, {run['datetime'][:10]}, {processor}, "
        f"Python {machine['python_version']}. Seconds are medians; ratios are medians of the ratios within "
        "each round. The limit is max(compute alone, bytes that the engine's plan must send / measured line rate).",
        "",
        f"![ratio to the limit]({picture})",
        "",
        f"| suite | row | median, s | rounds | {' | '.join(COLUMNS.values())} |",
        f"|---|---|---:|---:|{'---:|' * len(COLUMNS)}",
    ]
    return "\n".join([*head, *(_line(row) for row in run["benchmarks"])]) + "\n"


def _line(row: Row) -> str:
    suite = Path(row["fullname"].split("::")[0]).stem.removeprefix("test_")
    extra = [_cell(row["extra_info"].get(key)) for key in COLUMNS]
    cells = [suite, _label(row), f"{row['stats']['median']:.4g}", str(row["stats"]["rounds"]), *extra]
    return f"| {' | '.join(cells)} |"


def _label(row: Row) -> str:
    """test_step[2 ranks: ddp] -> 2 ranks: ddp"""
    return row["param"] or row["name"]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of the ratio to the limit, one group a scenario."""
    from matplotlib.figure import Figure  # slow to import

    compared = [row for row in rows if row["extra_info"].get("engine_speedup") is not None]
    figure = Figure(figsize=(8, 1 + 0.22 * len(compared)), layout="constrained")
    axes = figure.subplots()
    ratios = [row["extra_info"]["ratio_to_limit"] for row in compared]
    colours = ["tab:orange" if row["extra_info"]["row"].startswith("engine") else "tab:blue" for row in compared]
    axes.barh([_label(row) for row in compared], ratios, color=colours)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("limit / step time")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main(sys.argv[1:])
