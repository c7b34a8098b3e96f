"""Where a measurement runs: a Job is a number of ranks and the links between them; `run` gives back what they measured.

Three ways, chosen by what is there: in this process, if a launcher started it as one of many ranks; in the emulated
cluster, if the job has a rate; else as processes that torchrun starts on this machine, on its GPUs if it has any.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.__main__ import options
from bench.peers.measure import Measured, measure
from bench.peers.peer import Rank
from bench.workload import Settings
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.machine import Machine

ROOT = Path(__file__).parents[1]
LIMIT_S = 900.0


@dataclass(frozen=True)
class Job:
    """Ranks on hosts."""

    ranks_per_host: int
    hosts: int = 1
    rate: str | None = None
    """Of every host's link in the emulated cluster: 400mbit. None: this machine as it is."""

    @property
    def world(self) -> int:
        return self.hosts * self.ranks_per_host

    def command(self, rank_command: Sequence[str], report: Path) -> list[str]:
        """Starts `rank_command` once for every rank. A lab writes its line rate to `report`."""
        if self.rate is None:
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.world), "--no-python"]
            return [sys.executable, "-m", *launcher, *rank_command]
        size = ["--hosts", str(self.hosts), "--ranks-per-host", str(self.ranks_per_host), "--rate", self.rate]
        lab = ["bench.lab", "run", "--lab", "bench", *size, "--json", str(report), "--"]
        return [sys.executable, "-m", *lab, *rank_command]


@dataclass(frozen=True)
class Contestant:
    """An implementation with its settings."""

    label: str
    """Its row's name."""
    peer: str
    settings: Settings

    def command(self, python: str) -> list[str]:
        return [python, "-m", "bench.peers", self.peer, *options(self.settings)]


@dataclass(frozen=True)
class Outcome:
    """What a contestant did in a job."""

    measured: Measured
    line_rate: float | None
    """Payload bytes per second of every host's link, measured by the lab before the run."""


Run = Callable[[Contestant, Job], Outcome]


def run_processes(contestant: Contestant, job: Job, python: str = sys.executable) -> Outcome:
    """Start the ranks, wait, and read rank 0's line.

    Raises:
        subprocess.CalledProcessError: a rank failed; its output is in the exception's notes.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lab.json"
        lines = output_of(job.command(contestant.command(python), report)).splitlines()
        line_rate = json.loads(report.read_text())["line_rate_bytes_per_s"] if report.is_file() else None
    [line] = [line[line.index("{") :] for line in lines if '{"peer"' in line]
    return Outcome(Measured.from_json(line), line_rate)


def run_here(contestant: Contestant, rank: Rank) -> Outcome:
    """As one rank among those that a launcher started; they all run the same suites in the same order."""
    return Outcome(measure(contestant.peer, replace(rank, settings=contestant.settings)), None)


def output_of(command: Sequence[str]) -> str:
    """Standard output of a command that runs in the repository's root."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(f"{error.stdout}\n{error.stderr}"[-4000:])
        raise


def worlds(machine: Machine, place: Place | None) -> list[int]:
    """Numbers of ranks to measure: the launcher's, else 1, 2, 4 ... GPUs, else two processes on the CPU."""
    if place is not None:
        return [place.world]
    if not machine.gpus:
        return [2]
    return [2**n for n in range(len(machine.gpus).bit_length())]
