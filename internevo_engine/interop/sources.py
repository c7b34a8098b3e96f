"""interop: what a folder or file that comes from elsewhere holds, in our words.

Each format's own file (from_hf.py, from_internevo.py, from_gguf.py) opens it and hands a `Source` to import_engine.py,
which writes the engine folder.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from internevo_engine.config.schema import Config, ModelConfig
from internevo_engine.interop.names import Table
from internevo_engine.interop.tensors import Tensors


@dataclass(frozen=True)
class Hints:
    """What the user says because a source can't."""

    config: Config | None = None
    """Describes the model of an InternEvo checkpoint."""
    tokenizer: Path | None = None
    """A sentencepiece model that takes the place of the source's tokenizer."""
    qk_interleaved: bool = False
    """The InternEvo training's model.qk_interleaved, the opposite of its adapt_hf."""
    w2: Literal["up", "down"] | None = None
    """What w2 of an InternEvo checkpoint does, where its shape doesn't tell."""


@dataclass(frozen=True)
class Source:
    """A model from elsewhere, its tensors not yet read."""

    path: Path
    model: ModelConfig
    table: Table
    tensors: Tensors
    max_len: int
    """Positions it was made for, in tokens."""
    write_tokenizer: Callable[[Path], None]
    """Into the engine folder."""
    ignored: tuple[str, ...] = ()
    """Endings of tensors that hold nothing trained."""
