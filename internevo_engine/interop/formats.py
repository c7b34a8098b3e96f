"""interop: the table of formats that models come from. Opens a path as a Source, whichever it is.

import_engine.py writes an engine folder from it, engine_folder.py makes it look like one.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from internevo_engine.errors import DataError
from internevo_engine.interop.from_gguf import open_gguf
from internevo_engine.interop.from_hf import open_hf
from internevo_engine.interop.from_internevo import is_internevo, open_internevo
from internevo_engine.interop.names import Move, moves
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import check

Open = Callable[[Path, Hints, Path, ExitStack], Source]
"""(source, hints, folder for temporary files, what to close at the end)"""
FORMATS: tuple[tuple[Callable[[Path], bool], Open], ...] = (
    (lambda path: path.suffix == ".gguf", open_gguf),
    (is_internevo, open_internevo),
    (lambda path: (path / "config.json").is_file(), open_hf),
)
"""How each is recognized, and opened."""


def open_source(source: Path, hints: Hints, scratch: Path, stack: ExitStack) -> Source:
    """The first format that recognizes `source`.

    Raises:
        DataError: none does, or the source is damaged.
    """
    open_format = next((open_ for recognizes, open_ in FORMATS if recognizes(source)), None)
    if open_format is None:
        raise DataError(
            f"{source} is none of what the engine reads: a Hugging Face folder (config.json), an InternEvo checkpoint "
            "(model_tp0_pp0.pt) or a .gguf file"
        )
    return open_format(source, hints, scratch, stack)


def checked_moves(source: Source) -> list[Move]:
    """How our parameters are made of the source's tensors.

    Raises:
        DataError: it holds another model than it says.
    """
    planned = moves(source.table, source.model)
    check(source.tensors, planned, source.path, ignored=source.ignored)
    return planned
