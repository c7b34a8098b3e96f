"""chaos: python -m internevo_engine chaos run|replay: a campaign of trials, and one of them again.

A campaign's folder holds trials.jsonl, a line a trial, to which the same command appends what is missing; a trial that
failed keeps its folder.
"""

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from internevo_engine.chaos.history import happened, problems
from internevo_engine.chaos.trial import NOT_DRAWN, Trial, draw, kinds, run
from internevo_engine.errors import EngineError
from internevo_engine.loop.run_folder import read_jsonl

EPILOG = "left out: " + "; ".join(f"{action} ({reason})" for action, reason in NOT_DRAWN.items())


def chaos(arguments: Sequence[str]) -> int:
    """Returns 0 where every trial was as it should be, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m internevo_engine chaos", description="Break small runs on purpose, and judge how they end.",
        epilog=EPILOG,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True)
    campaign = verbs.add_parser("run", help="trials 0 to N - 1 of a seed; those that were run before are not again")
    campaign.add_argument("--seed", type=int, default=1)
    campaign.add_argument("--trials", type=int, default=len(kinds()), metavar="N")
    again = verbs.add_parser("replay", help="one trial again")
    again.add_argument("seed", type=int)
    again.add_argument("trial", type=int)
    for verb in (campaign, again):
        verb.add_argument("--out", type=Path, default=Path("runs/chaos"), help="folder of the campaign")
    asked = parser.parse_args(arguments)
    if asked.verb == "replay":
        return int(not _try(draw(asked.seed, asked.trial), asked.out, kept=True)["ok"])
    return _campaign(asked.seed, asked.trials, asked.out)


def _campaign(seed: int, trials: int, out: Path) -> int:
    records_file = out / "trials.jsonl"
    done = {record["number"] for record in read_jsonl(records_file) if record["seed"] == seed}
    for number in sorted(set(range(trials)) - done):
        record = _try(draw(seed, number), out)
        with records_file.open("a") as file:
            file.write(json.dumps(record) + "\n")
    records = [r for r in read_jsonl(records_file) if r["seed"] == seed and r["number"] < trials]
    print(report(records))
    return int(not all(record["ok"] for record in records))


def _try(trial: Trial, out: Path, *, kept: bool = False) -> dict[str, Any]:
    """Run and judge; says one line, and of a failure how to see it again."""
    golden, folder = _golden(out), out / f"trial-{trial.seed}-{trial.number}"
    shutil.rmtree(folder, ignore_errors=True)
    starts = run(trial, folder)
    wrong = problems(trial, starts, folder, golden)
    codes = [start.code for start in starts]
    fired = happened(folder)
    verdict = "ok" if not wrong else "FAILED"
    print(
        f"{verdict:<6} {trial.number:>4}  {trial.plan:<32} codes {codes}{'' if fired else '  (not reached)'}",
        flush=True,
    )
    for text in wrong:
        print(f"       {text}")
    if wrong:
        print(f"       python -m internevo_engine chaos replay {trial.seed} {trial.number}", flush=True)
    elif not kept:
        shutil.rmtree(folder)
    return asdict(trial) | {"fired": fired, "codes": codes, "ok": not wrong, "problems": wrong}


def _golden(out: Path) -> Path:
    """A run without a fault, made once for all trials of a folder."""
    folder = out / "golden"
    if not (folder / "run/report.txt").exists():
        shutil.rmtree(folder, ignore_errors=True)
        starts = run(None, folder)
        if [start.code for start in starts] != [0]:
            raise EngineError(f"the run without a fault failed: {starts[-1].errors}")
    return folder / "run"


def report(records: Iterable[dict[str, Any]]) -> str:
    """Trials per fault: how many were run, reached their fault, and failed."""
    rows: dict[str, Counter[str]] = {}
    for record in records:
        row = rows.setdefault(f"{record['point']:<12} {record['action'].split('=')[0]}", Counter())
        row.update(trials=1, fired=record["fired"], failed=not record["ok"])
    total = sum(rows.values(), Counter[str]())
    lines = [f"{'point':<12} {'action':<8} trials  fired  failed"]
    lines += [
        f"{name:<21} {row['trials']:>6} {row['fired']:>6} {row['failed']:>7}" for name, row in sorted(rows.items())
    ]
    lines.append(f"{'all':<21} {total['trials']:>6} {total['fired']:>6} {total['failed']:>7}")
    return "\n".join(lines)
