"""interop: a model from elsewhere becomes an engine folder.

Names and shapes are checked before anything is written; then one tensor at a time goes from the source to the shards.
"""

import shutil
from contextlib import ExitStack
from pathlib import Path

from internevo_engine.data.tokenizers import load_tokenizer
from internevo_engine.interop.engine_folder import write_config
from internevo_engine.interop.folder import SHARD_BYTES, published, write_weights
from internevo_engine.interop.formats import checked_moves, open_source
from internevo_engine.interop.hf_files import SENTENCEPIECE
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import read_moves
from internevo_engine.models.families import architecture, parameters


def import_engine(source: Path, target: Path, hints: Hints | None = None, *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write the engine folder `target` whole or not at all; returns the number of parameters.

    Raises:
        DataError: the source is none that the engine reads, is damaged, or holds another model than it says.
        StorageError: `target` is there already or can't be written.
    """
    hints = hints or Hints()
    with ExitStack() as stack:
        partial = stack.enter_context(published(target))
        found = open_source(source, hints, partial.parent, stack)
        planned = checked_moves(found)
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
