"""data: from sources to token folders. prepare calls `write_source` before a training; `data prepare` calls `build`.

`build` spreads a source over processes. Each writes shards, token folders of their own, which appear whole; what a
killed one has finished is kept, and the next call goes on from there:

    OUT.unfinished/recipe          what is made of what; another recipe is refused
    OUT.unfinished/shards/TYPE-N   shard N of a type, whole
    OUT.unfinished/whole/TYPE      the shards of a type in one, whole
    OUT                            renamed into place at the end
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from internevo_engine.data.arrays import LARGEST_ID
from internevo_engine.data.formats import TokenFile, TokenWriter, write_tokens
from internevo_engine.data.internevo import write_internevo
from internevo_engine.data.sources import Piece, Unready
from internevo_engine.data.tokenizers import Tokenizer, load_tokenizer
from internevo_engine.errors import DataError, MemoryNeededError, StorageError

Progress = Callable[[int], None]
"""Hears bytes of source that are done."""
Publish = Callable[[Path, Sequence[Path], Unready, Tokenizer | None], None]
"""(folder to make, its shards, their source, its tokenizer): a row of OUTPUTS."""


@dataclass(frozen=True)
class Shard:
    """What one process does in one go."""

    path: Path
    pieces: tuple[Piece, ...]

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.pieces)


def write_source(
    source: Unready, tokenizer: Tokenizer | None, path: Path, told: Callable[[TokenWriter], None]
) -> TokenWriter:
    """Make the token folder `path` in this process, with the tokenizer's threads; `told` hears of every document."""
    with _writer(source, tokenizer, path) as writer:
        for piece in source.pieces(sys.maxsize):
            for document, num_bytes in piece.encoded(tokenizer, num_threads=-1):
                writer.add(document, num_bytes)
                told(writer)
        _refuse_empty(writer, source)
    return writer


def build(
    sources: Sequence[Unready],
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    output: str,
    workers: int,
    shard_bytes: int,
    progress: Progress,
) -> None:
    """Make the folder `out`, with a folder inside for each source, by its type; with one source a token folder itself.

    The tokens depend on the sources and the tokenizer only, not on workers and shards.

    Raises:
        DataError: `out` is there, two sources have one type, an earlier call made something else, or a source is bad.
        StorageError: a folder can't be written.
    """
    if out.exists():
        raise DataError(f"{out} is already there; delete it, or choose another folder")
    twice = {source.type for source in sources if sum(other.type == source.type for other in sources) > 1}
    if twice:
        raise DataError(f"several sources are of type {', '.join(sorted(twice))}; prepare them into folders apart")
    unfinished = out.with_name(f"{out.name}.unfinished")
    _claim(unfinished, _recipe(sources, tokenizer, output, shard_bytes))
    shards = {source: list(_shards(source, unfinished / "shards", shard_bytes)) for source in sources}
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            _finish_shards(pool, shards, tokenizer, progress)
    except BrokenProcessPool as error:
        raise MemoryNeededError(
            f"one of {workers} tokenizing processes was killed, as a rule for want of memory; repeat with fewer "
            f"--workers: finished shards are kept in {unfinished}"
        ) from error
    whole = unfinished / "whole"
    for source in sources:
        if not (whole / source.type).is_dir():
            OUTPUTS[output](whole / source.type, [shard.path for shard in shards[source]], source, tokenizer)
    (whole / sources[0].type if len(sources) == 1 and output == "engine" else whole).rename(out)
    shutil.rmtree(unfinished)


def _recipe(sources: Iterable[Unready], tokenizer: Tokenizer | None, output: str, shard_bytes: int) -> str:
    made_with = tokenizer.sha256 if tokenizer else "no tokenizer"
    lines = (f"{source.name} {source.type} {source.fingerprint}" for source in sources)
    return "\n".join([f"{output} {made_with} {shard_bytes}", *lines, ""])


def _claim(unfinished: Path, recipe: str) -> None:
    path = unfinished / "recipe"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.with_suffix(".tmp").write_text(recipe, "utf-8", "surrogateescape")
            path.with_suffix(".tmp").rename(path)
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}; choose another folder") from error
    if path.read_text("utf-8", "surrogateescape") != recipe:
        raise DataError(
            f"{unfinished} was begun from other sources, another tokenizer or other options; repeat that call to "
            f"finish it, or delete the folder"
        )


def _shards(source: Unready, folder: Path, shard_bytes: int) -> Iterator[Shard]:
    """Neighbouring pieces, together `shard_bytes` or a little more."""
    pieces: list[Piece] = []
    number, num_bytes = 0, 0
    for piece in source.pieces(shard_bytes):
        pieces.append(piece)
        num_bytes += piece.num_bytes
        if num_bytes >= shard_bytes:
            yield Shard(folder / f"{source.type}-{number:06}", tuple(pieces))
            pieces, number, num_bytes = [], number + 1, 0
    if pieces:
        yield Shard(folder / f"{source.type}-{number:06}", tuple(pieces))


def _finish_shards(
    pool: Executor, shards: dict[Unready, list[Shard]], tokenizer: Tokenizer | None, progress: Progress
) -> None:
    at_work: dict[Future[None], Shard] = {}
    for source, of_source in shards.items():
        for shard in of_source:
            if shard.path.is_dir():
                progress(shard.num_bytes)
            else:
                at_work[pool.submit(_write_shard, source, shard, tokenizer and tokenizer.path)] = shard
    try:
        for future in as_completed(at_work):
            future.result()
            progress(at_work[future].num_bytes)
    finally:
        for future in at_work:
            future.cancel()


def _write_shard(source: Unready, shard: Shard, tokenizer_path: Path | None) -> None:
    """In a process of the pool."""
    tokenizer = load_tokenizer(tokenizer_path, LARGEST_ID) if tokenizer_path else None
    with _writer(source, tokenizer, shard.path) as writer:
        for piece in shard.pieces:
            for document, num_bytes in piece.encoded(tokenizer, num_threads=1):
                writer.add(document, num_bytes)


def _join(path: Path, shards: Sequence[Path], source: Unready, tokenizer: Tokenizer | None) -> None:
    """All shards in one token folder."""
    with _writer(source, tokenizer, path) as writer:
        for shard in shards:
            writer.append(TokenFile.open(shard, LARGEST_ID + 1))
        _refuse_empty(writer, source)


def _export(path: Path, shards: Sequence[Path], source: Unready, tokenizer: Tokenizer | None) -> None:
    """All shards in one file of InternEvo's."""
    files = [TokenFile.open(shard, LARGEST_ID + 1) for shard in shards]
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.mkdir(parents=True, exist_ok=True)
    write_internevo(unfinished / "data.bin", (document for file in files for document in file.documents()))
    unfinished.rename(path)


OUTPUTS: Mapping[str, Publish] = {"engine": _join, "internevo": _export}
"""What `build` makes, by the name that the command line knows."""


def _writer(source: Unready, tokenizer: Tokenizer | None, path: Path) -> AbstractContextManager[TokenWriter]:
    return write_tokens(
        path,
        tokenizer.num_pieces if tokenizer and source.needs_tokenizer else None,
        source=source.name,
        tokenizer_sha256=tokenizer.sha256 if tokenizer and source.needs_tokenizer else None,
        masked=source.is_masked,
    )


def _refuse_empty(writer: TokenWriter, source: Unready) -> None:
    if not writer.starts[-1]:
        raise DataError(
            f"corpus '{source.name}' is empty: {source.num_bytes} bytes without text; add text or name another"
        )
