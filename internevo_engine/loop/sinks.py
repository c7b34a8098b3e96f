"""loop: where records go. A sink takes (step, record); metrics.jsonl is always there, TensorBoard on request."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from internevo_engine.errors import ConfigError

Record = Mapping[str, Any]
"""Numbers, nulls, and mappings of them by name."""
Sink = Callable[[int, Record], None]


def jsonl(path: Path) -> Sink:
    """Append one JSON object a line, whole even if the process dies right after."""

    def write(_step: int, record: Record) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    return write


def tensorboard() -> Callable[[Path], Sink]:
    """What makes a sink of scalars for TensorBoard in a folder.

    Raises:
        ConfigError: the package is not installed. Asked before a folder is made.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # optional: the extra [track]
    except ImportError:
        raise ConfigError(
            "run.tensorboard=true needs TensorBoard: pip install 'internevo-engine[track]', or run.tensorboard=false"
        ) from None

    def open_sink(folder: Path) -> Sink:
        writer = SummaryWriter(str(folder))

        def write(step: int, record: Record) -> None:
            for name, value in _scalars(record):
                if name != "step":
                    writer.add_scalar(name, value, step)
            writer.flush()

        return write

    return open_sink


def _scalars(record: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    """{"types": {"en": {"loss": 2.0}}} -> "types/en/loss", 2.0."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif value is not None:
            yield f"{prefix}{name}", value
