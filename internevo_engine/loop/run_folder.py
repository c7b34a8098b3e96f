"""loop: the run folder, what is written into it, and whether a run may use it.

RUN/run.json           the run's id, state (running, finished, interrupted, failed), steps done
RUN/config.yaml        every key, defaults included
RUN/command.txt        what was typed
RUN/environment.json   versions, machine, device
RUN/plan.txt           groups, buckets, memory forecast;  RUN/program.txt  the captured step
RUN/log/rank0.log      what rank 0 said; a rank that fails leaves its traceback in its own log
RUN/metrics.jsonl      one line a step;  RUN/valid.jsonl  one line a validation
RUN/skipped.jsonl      the batches that were left out, and why; only where there are any
RUN/fingerprint.jsonl  the bits of each step, to compare runs
RUN/loss.png
RUN/checkpoints/       step-N/, what the run goes on from; see checkpoint/storage.py
RUN/final/             model.safetensors, tokenizer.model, config.yaml
RUN/failure.json       after a failure: who, why, and what each rank did last; see runtime/failure.py

Whoever makes RUN/STOP ends the run after the current step, with a checkpoint.
"""

import json
import os
import platform
import shutil
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from internevo_engine.config.load import load_config, numeric_differences
from internevo_engine.config.schema import Config
from internevo_engine.errors import ConfigError, StorageError


def is_finished(config: Config) -> bool:
    """True where this very run has already ended, and nothing was asked for beyond that. Reads only.

    Raises:
        ConfigError: the folder holds a finished run with other numbers.
    """
    folder = folder_of(config)
    if config.checkpoint.resume == "never" or read_state(folder).get("state") != "finished":
        return False
    old = load_config(folder / "config.yaml")
    differences = numeric_differences(old, config)
    if [text.partition(":")[0] for text in differences] == ["run.steps"] and config.run.steps > old.run.steps:
        return False
    if differences:
        raise ConfigError(
            f"{folder} holds a finished run with other settings ({'; '.join(differences)}); "
            "give this one a folder of its own with run.dir=..., or move the old one aside with --fresh"
        )
    return True


def folder_of(config: Config) -> Path:
    """The run folder; `load_config` fills run.dir in."""
    if config.run.dir is None:
        raise ConfigError("run.dir: is required when the config was not read from a file")
    return Path(config.run.dir)


class RunFolder:
    """A folder that this run may write to; made by rank 0 only."""

    def __init__(self, path: Path, *, num_steps: int, goes_on: bool, job: str = "") -> None:
        """Claim the folder; what an earlier run left there is moved aside, never deleted.

        Args:
            goes_on: it holds this very run, to be continued; it may be gone where the checkpoints are elsewhere.
            job: the command that starts it, which may do so several times; see Place.

        Raises:
            ConfigError: another process trains there right now, or it holds something else.
            StorageError: the folder can't be written.
        """
        self.path = path
        _refuse_if_in_use(path)
        keeps = goes_on or is_of_job(path, job)
        self.moved_to = None if keeps else _move_aside(path)
        state = read_state(path)
        self.run_id: str | None = state.get("id") if keeps else uuid4().hex
        self.steps_done: int = state.get("step", 0)
        self._num_steps, self._job = num_steps, job
        try:
            (path / "log").mkdir(parents=True, exist_ok=True)
            self.set_state("running", self.steps_done)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}; choose another folder with run.dir=...") from None

    def set_state(self, state: str, step: int) -> None:
        """Record where the run stands; replaced in one move, so that it is never half written."""
        record = {
            "id": self.run_id,
            "state": state,
            "step": step,
            "steps": self._num_steps,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": self._job,
        }
        self.write("run.json", json.dumps(record) + "\n")

    def write(self, name: str, text: str) -> None:
        """Write a small file whole or not at all."""
        partial = self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path / name)

    def go_back_to(self, step: int) -> None:
        """Drop the records of later steps, which are about to be made again."""
        for path in self.path.glob("*.jsonl"):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
            self.write(path.name, b"".join(kept).decode())


def is_of_job(folder: Path, job: str) -> bool:
    """Whether an earlier attempt of this very command has claimed the folder."""
    return job != "" and read_state(folder).get("job") == job


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSON-lines file; none where the file is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants to repeat the run."""
    packages = ("internevo-engine", "torch", "numpy", "safetensors", "sentencepiece")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": len(os.sched_getaffinity(0)),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return None


def read_state(folder: Path) -> dict[str, Any]:
    """What run.json says; empty where there is none."""
    path = folder / "run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _refuse_if_in_use(folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        return
    state = read_state(folder)
    if not state:
        raise ConfigError(f"{folder} is not empty and holds no run; choose another folder with run.dir=...")
    if state["state"] == "running" and state["host"] == socket.gethostname() and _is_alive(state["pid"]):
        raise ConfigError(
            f"{folder} is in use: process {state['pid']} trains there; wait for it, or choose another run.dir=..."
        )


def _move_aside(folder: Path) -> Path | None:
    if not folder.exists() or not any(folder.iterdir()):
        return None
    target = next(path for n in range(1, 10**6) if not (path := folder.with_name(f"{folder.name}.{n}")).exists())
    try:
        shutil.move(folder, target)
    except OSError as error:
        raise StorageError(
            f"{folder} can't be moved to {target}: {error.strerror}; choose another run.dir=..."
        ) from None
    return target


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
