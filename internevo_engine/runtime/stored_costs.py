"""runtime: measured cost tables on disk, so that a second start of the same kind of job measures nothing.

One JSON file for each kind in $XDG_CACHE_HOME/internevo_engine/costs (~/.cache where that is unset), on the host of
rank 0. Whoever changes the network under the same hosts deletes the folder.
"""

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from internevo_engine.schedule.costs import CostTable

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
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = json.dumps({**kind, "format": FORMAT}, sort_keys=True)
    return root / "internevo_engine" / "costs" / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def read(kind: JobKind) -> CostTable | None:
    """The table of an earlier start; None if there was none."""
    path = path_of(kind)
    return CostTable.from_json(json.dumps(json.loads(path.read_text())["costs"])) if path.is_file() else None


def write(kind: JobKind, costs: CostTable) -> None:
    """Keep a table. The file appears whole.

    Raises:
        OSError: the folder can't be written.
    """
    path = path_of(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump({"kind": dict(kind), "costs": json.loads(costs.json())}, file, indent=1)
    os.replace(file.name, path)
