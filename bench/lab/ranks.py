"""Ranks on the hosts of a lab: started with torchrun's environment, heard with their names, ended together."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, TextIO

from bench.lab.layout import Command, Lab, environment, inside

POLL_S = 0.02
GRACE_S = 5.0
"""Time for ranks to say what they saw, and again to end themselves, before they are killed."""

Process = subprocess.Popen[str]


def run_ranks(lab: Lab, command: Command) -> int:
    """Run the command once for every rank; returns the exit code of the first that failed, else 0."""
    with _started(lab, command) as ranks:
        speakers = [speaker for rank, process in enumerate(ranks) for speaker in _speakers(lab, rank, process)]
        code = _first_failure(ranks)
        if code:
            _wait(ranks, GRACE_S)
            _end(ranks)
        for speaker in speakers:
            speaker.join(GRACE_S)  # a grandchild may hold the pipe open
    return code


@contextmanager
def _started(lab: Lab, command: Command) -> Iterator[list[Process]]:
    ranks: list[Process] = []
    try:
        for rank in range(lab.world):
            ranks.append(_start(lab, rank, command))
        yield ranks
    finally:
        _end(ranks)


def _start(lab: Lab, rank: int, command: Command) -> Process:
    return subprocess.Popen(
        inside(lab, rank // lab.ranks_per_host, command),
        env=os.environ | environment(lab, rank),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # the terminal's Ctrl-C reaches the lab alone, which ends the ranks
    )


def _speakers(lab: Lab, rank: int, process: Process) -> list[threading.Thread]:
    name = f"[host{rank // lab.ranks_per_host} rank{rank}] "
    pipes = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    threads = [threading.Thread(target=_repeat, args=(name, *pipe), daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    return threads


def _repeat(name: str, source: IO[str], target: TextIO) -> None:
    for line in source:
        target.write(f"{name}{line.rstrip()}\n")
        target.flush()


def _first_failure(ranks: Sequence[Process]) -> int:
    """Wait until a rank fails or all have ended; a signal counts as the shell counts it, 128 + its number."""
    while True:
        codes = [process.poll() for process in ranks]
        for code in codes:
            if code:
                return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        time.sleep(POLL_S)


def _wait(ranks: Sequence[Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL_S)


def _end(ranks: Sequence[Process]) -> None:
    for process in ranks:
        process.terminate()
    _wait(ranks, GRACE_S)
    for process in ranks:
        process.kill()
        process.wait()
