"""data: what is in prepared data: counts, extremes, ids that don't fit, samples. For `data inspect`; no torch.

Reads every token once, a document at a time, so it works for any format and any size.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from internevo_engine.data.arrays import LARGEST_ID, Tokens, token_ids
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.sources import Source, TokenFolder
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.errors import DataError

SAMPLE_TOKENS = 200
"""Of a document that is shown."""


@dataclass
class Inspection:
    """Counts over the documents of one source, filled by `inspect`."""

    name: str
    type: str
    num_documents: int = 0
    num_tokens: int = 0
    num_counted: int = 0
    """Tokens that are labels: not masked, and not the first of their document."""
    shortest: int = LARGEST_ID
    longest: int = 0
    """Documents, in tokens."""
    largest_id: int = 0
    num_too_large: int = 0
    """Ids that are not below the vocabulary asked about."""
    first_too_large: str = ""
    samples: list[Tokens] = field(default_factory=list)
    """The first documents."""
    sha256: str = ""
    """Of the documents, tokens and masks, as int32 behind their lengths: the same in every format."""


def inspect(source: Source, *, vocab: int | None, num_samples: int) -> Inspection:
    """Read all of `source`, whose tokens are there already.

    Raises:
        DataError: it is text, or damaged.
    """
    found, digest = Inspection(source.name, source.type), hashlib.sha256()
    for document in _documents(source):
        digest.update(len(document).to_bytes(8, "little") + document.astype("<i4").tobytes())
        _count(found, document, vocab)
        found.samples += [document] * (len(found.samples) < num_samples)
    found.sha256 = digest.hexdigest()
    return found


def describe(found: Inspection, tokenizer: Tokenizer | None, vocab: int | None) -> str:
    """A paragraph for people."""
    rows = {
        "documents": f"{found.num_documents:,}",
        "tokens": f"{found.num_tokens:,}, of which {found.num_counted:,} are labels",
        "lengths": f"{found.shortest:,} to {found.longest:,} tokens" if found.num_documents else "none",
        "largest id": f"{found.largest_id:,}",
    }
    if vocab is not None:
        where = f", the first in {found.first_too_large}" if found.num_too_large else ""
        rows[f"ids >= {vocab}"] = f"{found.num_too_large:,}{where}"
    rows["sha256"] = found.sha256
    lines = [f"{found.name}  (type {found.type})", *(f"  {name:<12} {text}" for name, text in rows.items())]
    return "\n".join([*lines, *(_as_sample(sample, tokenizer) for sample in found.samples)])


def _documents(source: Source) -> Iterator[Tokens]:
    if isinstance(source, TokenFolder):
        file = TokenFile.open(source.path, LARGEST_ID + 1)
        file.verify()
        yield from file.documents()
    elif source.needs_tokenizer:
        raise DataError(f"{source.name} is text, not tokens; make tokens first: data prepare OUT {source.name} ...")
    else:
        for piece in source.pieces(LARGEST_ID):
            for document, _ in piece.encoded(None, num_threads=1):
                yield document


def _count(found: Inspection, document: Tokens, vocab: int | None) -> None:
    ids = token_ids(document)
    largest = int(ids.max(initial=0))
    if vocab is not None and largest >= vocab:
        found.num_too_large += int((ids >= vocab).sum())
        position = int((ids >= vocab).argmax())
        found.first_too_large = found.first_too_large or (
            f"document {found.num_documents}, position {position}: token {ids[position]}"
        )
    found.num_documents += 1
    found.num_tokens += len(document)
    found.num_counted += int((document[1:] >= 0).sum())
    found.shortest, found.longest = min(found.shortest, len(document)), max(found.longest, len(document))
    found.largest_id = max(found.largest_id, largest)


def _as_sample(document: Tokens, tokenizer: Tokenizer | None) -> str:
    """A run of tokens a line; '|' what the model only reads, '>' what it learns to say."""
    runs = groupby(document[:SAMPLE_TOKENS].tolist(), key=lambda token: token >= 0)
    return "\n".join(f"  {'>' if counted else '|'} {_as_text(run, tokenizer)}" for counted, run in runs)


def _as_text(run: Iterable[int], tokenizer: Tokenizer | None) -> str:
    ids = [max(token, ~token) for token in run]
    if tokenizer is None:
        return " ".join(map(str, ids))
    return repr(tokenizer.decode([token for token in ids if token < tokenizer.num_pieces]))
