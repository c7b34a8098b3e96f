"""Collectives of a bucket's size: the engine's transfers, torch.distributed's, and the line rate.

python -m pytest bench/test_collectives.py
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from bench.collectives import ROWS, Collectives, measure
from bench.job import Job, output_of, worlds
from bench.peers.peer import Rank
from internevo_engine.runtime.launch import find_place
from internevo_engine.runtime.machine import probe_machine

ROUNDS = 5
PLACE = find_place(None, os.environ)
HERE = tuple(Job(world) for world in worlds(probe_machine(), PLACE) if world > 1)
LAB = (Job(1, hosts=2, rate="400mbit"),)
MEGABYTES = (1.0, 36.0)


@dataclass(frozen=True)
class Found:
    """Of one job and size."""

    collectives: Collectives
    line_rate: float | None


def rows() -> Iterator[object]:
    for job in (*HERE, *LAB):
        for megabytes in MEGABYTES:
            for name in ROWS:
                label = f"{job.rate or 'here'} {megabytes:g} MB: {name}"
                yield pytest.param(job, megabytes, name, id=label, marks=[pytest.mark.lab] if job.rate else [])


@pytest.fixture(scope="session")
def found(rank: Rank | None) -> Callable[[Job, float], Found]:
    """Measures a job when it is first asked for."""
    done: dict[tuple[Job, float], Found] = {}

    def once(job: Job, megabytes: float) -> Found:
        if (job, megabytes) not in done:
            done[job, megabytes] = _here(rank, megabytes) if rank else _started(job, megabytes)
        return done[job, megabytes]

    return once


def _here(rank: Rank, megabytes: float) -> Found:
    return Found(measure(rank, int(megabytes * 1e6), ROUNDS), None)


def _started(job: Job, megabytes: float) -> Found:
    command = [sys.executable, "-m", "bench.collectives", "--mb", str(megabytes), "--rounds", str(ROUNDS)]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lab.json"
        text = output_of(job.command(command, report))
        line_rate = json.loads(report.read_text())["line_rate_bytes_per_s"] if report.is_file() else None
    return Found(Collectives(**json.loads(text[text.index("{") :])), line_rate)


@pytest.mark.parametrize(("job", "megabytes", "name"), list(rows()))
def test_transfer(
    found: Callable[[Job, float], Found], replay: Callable[..., None], job: Job, megabytes: float, name: str
) -> None:
    result = found(job, megabytes)
    seconds, row = result.collectives.seconds[name], ROWS[name]
    sent = row.sent_bytes(result.collectives.numel, result.collectives.world, 2 if "bf16" in name else 4)
    rate = sent / median(seconds)
    replay(
        seconds,
        ranks=result.collectives.world,
        bytes_sent=sent,
        bytes_per_s=round(rate),
        ratio_to_limit=round(rate / result.line_rate, 3) if result.line_rate else None,
    )
