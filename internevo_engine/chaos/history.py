"""chaos: what a trial left behind, judged. Every check returns what is wrong, in words; nothing: all is well."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from internevo_engine.chaos.trial import MARK, STEPS, Start, Trial
from internevo_engine.checkpoint.load import verify
from internevo_engine.checkpoint.local import LocalStorage
from internevo_engine.errors import CheckpointError, EngineError
from internevo_engine.loop.fingerprint import first_difference
from internevo_engine.loop.run_folder import read_jsonl

EQUAL = f"{STEPS} steps are equal, bit for bit"

LEGAL = {
    "kill": (0, 6, 137, -9),
    "raise": (0, 4, 5, 70),
    "exit": (0,),  # and its own
    "delay": (0,),
    "nan": (0,),
    "flip": (0, 10),
    "short": (0,),
    "errno": (0, 4, 5),
}
"""Codes with which a start may end, by action; 0 in the end."""


def problems(trial: Trial, starts: Sequence[Start], folder: Path, golden: Path) -> list[str]:
    """Everything that is wrong with a trial."""
    return [
        *_codes(trial, starts),
        *_culprit(trial, starts),
        *_checkpoints(folder / "run/checkpoints"),
        *_committed(trial, folder / "run", golden),
        *_left_behind(folder),
    ]


def happened(folder: Path) -> bool:
    """The fault was reached."""
    return any(path.read_text().strip() for path in folder.glob("run.rank*.faults"))


def _codes(trial: Trial, starts: Sequence[Start]) -> Iterator[str]:
    action, _, number = trial.action.partition("=")
    legal = (*LEGAL[action], int(number)) if action == "exit" else LEGAL[action]
    for start in starts:
        if start.code not in legal:
            yield f"code {start.code} is none of {legal}: {start.errors[-400:]}"
    if starts[-1].code != 0:
        yield f"the same command did not come to its end in {len(starts)} starts"


def _culprit(trial: Trial, starts: Sequence[Start]) -> Iterator[str]:
    """A start that failed names the rank, or (a message) the pair."""
    failed = [start for start in starts if start.code != 0]
    named = f"rank {trial.rank}"
    if failed and named not in failed[0].errors and "ranks 0 and 1" not in failed[0].errors:
        yield f"the culprit, {named}, is not named: {failed[0].errors[-400:]}"


def _checkpoints(folder: Path) -> Iterator[str]:
    """Published implies verifies."""
    storage = LocalStorage(folder)
    for step in storage.steps():
        try:
            verify(storage.published(step), step)
        except CheckpointError as error:
            yield f"a published checkpoint does not verify: {error}"
    if STEPS not in storage.steps():
        yield "the last checkpoint is not there"


def _committed(trial: Trial, run: Path, golden: Path) -> Iterator[str]:
    """Every step once, with the golden bits; a batch that was left out is the only way to part from them."""
    records = read_jsonl(run / "metrics.jsonl")
    steps = [record["step"] for record in records]
    if steps != list(range(1, STEPS + 1)):
        yield f"steps {steps}, not 1 to {STEPS} once each"
    tokens = [record["tokens"] for record in read_jsonl(golden / "metrics.jsonl")]
    if [record["tokens"] for record in records] != tokens:
        yield f"tokens {[record['tokens'] for record in records]}, not {tokens}: a sample is missing or there twice"
    skips = read_jsonl(run / "skipped.jsonl")
    if len(skips) != (trial.action == "nan" and happened(run.parent)):
        yield f"{len(skips)} batches were left out: {skips}"
    if skips:
        return
    try:
        difference = first_difference(golden, run)
    except EngineError as error:
        difference = str(error)
    if difference != EQUAL:
        yield difference


def _left_behind(folder: Path) -> Iterator[str]:
    mark = f"{MARK}={(folder / 'mark').read_text()}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
        except OSError:  # ended meanwhile, or somebody else's
            continue
        if mark in environment and int(process.name) != os.getpid():
            yield f"process {process.name} is left: {(process / 'cmdline').read_bytes()!r}"
    for path in [*(folder / "tmp").glob("internevo-*"), *(folder / "run/checkpoints").glob("*.tmp-*")]:
        yield f"{path} is left"
