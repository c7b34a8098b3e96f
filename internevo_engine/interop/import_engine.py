"""interop: a model from elsewhere becomes an engine folder. The table of formats stands here.

Names and shapes are checked before anything is written; then one tensor at a time goes from the source to the shards.
"""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from internevo_engine.data.tokenizers import load_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.interop.engine_folder import write_config
from internevo_engine.interop.folder import SHARD_BYTES, published, write_weights
from internevo_engine.interop.from_gguf import open_gguf
from internevo_engine.interop.from_hf import open_hf
from internevo_engine.interop.from_internevo import is_internevo, open_internevo
from internevo_engine.interop.hf_files import SENTENCEPIECE
from internevo_engine.interop.names import moves
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import check, read_moves
from internevo_engine.models.families import architecture, parameters

Open = Callable[[Path, Hints, Path, ExitStack], Source]
"""(source, hints, folder for temporary files, what to close at the end)"""
FORMATS: tuple[tuple[Callable[[Path], bool], Open], ...] = (
    (lambda path: path.suffix == ".gguf", open_gguf),
    (is_internevo, open_internevo),
    (lambda path: (path / "config.json").is_file(), open_hf),
)
"""How each is recognized, and opened."""


def import_engine(source: Path, target: Path, hints: Hints | None = None, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the engine folder `target` whole or not at all; returns the number of parameters.

    Raises:
        DataError: the source is none that the engine reads, is damaged, or holds another model than it says.
        StorageError: `target` is there already or can't be written.
    """
    hints = hints or Hints()
    open_source = next((open_ for recognizes, open_ in FORMATS if recognizes(source)), None)
    if open_source is None:
        raise DataError(
            f"{source} is none of what the engine reads: a Hugging Face folder (config.json), an InternEvo checkpoint "
            "(model_tp0_pp0.pt) or a .gguf file"
        )
    with ExitStack() as stack:
        partial = stack.enter_context(published(target))
        found = open_source(source, hints, partial.parent, stack)
        planned = moves(found.table, found.model)
        check(found.tensors, planned, source, ignored=found.ignored)
        _write_tokenizer(found, partial, hints.tokenizer)
        write_weights(partial, read_moves(found.tensors, planned, architecture(found.model)), shard_bytes)
        write_config(partial, found.model, found.max_len)
    return sum(param.numel for param in parameters(found.model))


def _write_tokenizer(source: Source, target: Path, given: Path | None) -> None:
    if given is None:
        source.write_tokenizer(target)
    else:
        load_tokenizer(given, source.model.vocab)
        shutil.copyfile(given, target / SENTENCEPIECE)
