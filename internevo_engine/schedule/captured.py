"""schedule: captured micro-batches on disk, so that a model is captured once for all plans and worlds that are tried.

One JSON file for each model, adapters, shape and recomputation in the folder `graphs` (kept.py). Its name depends on
the code that captures too, so a changed engine captures anew.
"""

import hashlib
import json
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from internevo_engine.config.schema import Config
from internevo_engine.schedule.graph_spec import CallSpec, GraphSpec, ValueSpec
from internevo_engine.schedule.kept import keep, kept_path

_PACKAGE = Path(__file__).parent.parent


def captured(config: Config, dtype: str) -> GraphSpec:
    """One micro-batch of a config's decoder: from an earlier capture, or captured now.

    Raises:
        CaptureError: the config can't be captured.
    """
    path = _path(config, dtype)
    if path.is_file():
        return _read(path.read_text())
    from internevo_engine.schedule.show import capture_spec  # imports torch

    spec = capture_spec(config, dtype)
    try:
        keep(path, json.dumps(asdict(spec)))
    except OSError as error:  # which costs the next start seconds, and this one nothing
        print(f"the captured graph can't be kept in {error.filename}: {error.strerror}", file=sys.stderr)
    return spec


def _path(config: Config, dtype: str) -> Path:
    kind = {
        "model": config.model.model_dump(mode="json"),
        "lora": config.lora.model_dump(mode="json"),
        "seq_len": config.data.seq_len,
        "micro_batch": config.data.micro_batch,
        "recompute": config.graph.model_dump(mode="json")["recompute"],
        "dtype": dtype,
        "code": _code_hash(),
    }
    return kept_path("graphs", kind)


@cache
def _code_hash() -> str:
    """Of what decides how a capture looks."""
    sources = sorted(path for room in ("graph", "models", "schedule") for path in (_PACKAGE / room).glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _read(text: str) -> GraphSpec:
    spec: dict[str, Any] = json.loads(text)
    return GraphSpec(
        calls=tuple(_call(call) for call in spec["calls"]),
        values=tuple(ValueSpec(**value) for value in spec["values"]),
        loss=tuple(spec["loss"]),
    )


def _call(call: dict[str, Any]) -> CallSpec:
    tuples = {key: tuple(call[key]) for key in ("reads", "writes", "params")}
    return CallSpec(**{**call, **tuples})
