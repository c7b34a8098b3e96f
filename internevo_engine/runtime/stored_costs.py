"""runtime: measured cost tables on disk, so that a second start of the same kind of job measures nothing.

One JSON file for each kind in the folder `costs` (schedule/kept.py), on the host of rank 0. Whoever changes the
network under the same hosts deletes the folder.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from internevo_engine.schedule.costs import CostTable
from internevo_engine.schedule.kept import keep, kept_path

FORMAT = 1
JobKind = Mapping[str, str | int]
"""Everything that a measurement depends on, by name."""


def host_kind(device: torch.device) -> str:
    """What computes here, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {models[0] if models else platform.machine()}"


def path_of(kind: JobKind) -> Path:
    """Where the table of this kind of job is kept."""
    return kept_path("costs", {**kind, "format": FORMAT})


def read(kind: JobKind) -> CostTable | None:
    """The table of an earlier start; None if there was none."""
    path = path_of(kind)
    return CostTable.from_json(json.dumps(json.loads(path.read_text())["costs"])) if path.is_file() else None


def write(kind: JobKind, costs: CostTable) -> None:
    """Keep a table. The file appears whole.

    Raises:
        OSError: the folder can't be written.
    """
    keep(path_of(kind), json.dumps({"kind": dict(kind), "costs": json.loads(costs.json())}, indent=1))
