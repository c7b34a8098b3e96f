"""data: from a line of JSONL or a row of parquet to a document: a text, or the turns of a dialogue. Feeds corpora.

Dialogues are records with `messages` (role and content each) or Alpaca's `instruction`, `input`, `output`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from internevo_engine.errors import DataError

LONGEST_LINE_BYTES = 1 << 30
"""A longer line of JSONL is a damaged file; it is refused before it is read."""

Role = Literal["system", "user", "assistant"]
Where = str
"""File and line of a record, for messages."""


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Role
    content: str


@dataclass(frozen=True)
class Document:
    """One text. `name` is its file, or file:line in JSONL."""

    name: str
    text: str
    """Of a dialogue: what all turns say, a line each."""
    turns: tuple[Turn, ...] = ()
    """Empty unless it is a dialogue."""


def read_jsonl(path: Path, begin: int, end: int) -> Iterator[tuple[Where, Any]]:
    """Records of the lines that begin in bytes [begin, end); a stretch in the middle counts bytes instead of lines."""
    with path.open("rb") as file:
        if begin:
            file.seek(begin - 1)
            file.readline(LONGEST_LINE_BYTES)
        number = 0
        while (offset := file.tell()) < end and (line := file.readline(LONGEST_LINE_BYTES)):
            number += 1
            where = f"{path}:{number}" if not begin else f"{path}, byte {offset}"
            if len(line) == LONGEST_LINE_BYTES:
                raise DataError(f"{where}: the line is longer than {LONGEST_LINE_BYTES} bytes; one record is one line")
            if line.strip():
                yield where, parse_json(line, where)


def read_parquet(path: Path) -> Iterator[tuple[Where, Any]]:
    """Rows of a parquet file, a batch of them in memory at a time.

    Raises:
        DataError: pyarrow isn't installed, or can't read the file.
    """
    try:
        from pyarrow import ArrowException, parquet  # optional: the extra [parquet]  # pyright: ignore
    except ImportError:
        raise DataError(
            f"{path}: parquet needs pyarrow: pip install 'internevo-engine[parquet]', or turn the file into JSONL"
        ) from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except ArrowException as error:
        raise DataError(f"{path} can't be read as parquet: {str(error).splitlines()[0]}; copy it again") from error


def parse_json(line: bytes, where: Where) -> Any:
    """One JSON value.

    Raises:
        DataError: it isn't UTF-8 or isn't JSON.
    """
    try:
        return json.loads(decode(line, where))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}; each line of a .jsonl file is one JSON object") from error


def decode(raw: bytes, where: Where) -> str:
    """Text of UTF-8 bytes.

    Raises:
        DataError: names the first byte that isn't UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8; convert the file to UTF-8 "
            f"or take it out of the corpus"
        ) from error


def document_of(record: Any, where: Where, *, text_key: str, dialogues: bool) -> Document:
    """What a record says. With `dialogues` a record that has the keys of a dialogue is one, else all are texts.

    Raises:
        DataError: there is no text, or a dialogue has a turn without words or an unknown role.
    """
    if not isinstance(record, dict):
        raise DataError(f'{where}: {type(record).__name__} instead of an object; write {{"{text_key}": ...}}')
    if dialogues and "messages" in record:
        return _dialogue(_messages(record["messages"], where), where)
    if dialogues and {"instruction", "output"} <= record.keys():
        return _dialogue(_alpaca(record, where), where)
    if text_key not in record:
        raise DataError(
            f"{where}: no key '{text_key}' among {sorted(record)}; set data.text_key to the key of the text, "
            f"or data.chat for records with 'messages' or 'instruction' and 'output'"
        )
    return Document(where, _text(record, text_key, where, "set data.text_key to the key of the text"))


def _dialogue(turns: tuple[Turn, ...], where: Where) -> Document:
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError(f"{where}: no turn of the assistant among {len(turns)}; there is nothing to learn; add one")
    return Document(where, "\n".join(turn.content for turn in turns), turns)


def _messages(messages: Any, where: Where) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise DataError(f'{where}: \'messages\' is no list of objects; write [{{"role": ..., "content": ...}}, ...]')
    return tuple(_turn(message, f"{where}, message {number}") for number, message in enumerate(messages, start=1))


def _turn(message: Mapping[str, Any], where: Where) -> Turn:
    roles = get_args(Role)
    if message.get("role") not in roles:
        raise DataError(f"{where}: role is {message.get('role')!r}; use {', '.join(roles)}")
    return Turn(message["role"], _text(message, "content", where, "write the words of the turn"))


def _alpaca(record: Mapping[str, Any], where: Where) -> tuple[Turn, ...]:
    parts = [_text(record, key, where, "write text") for key in ("instruction", "input", "output") if record.get(key)]
    *prompt, answer = parts if record.get("output") else [*parts, ""]
    return Turn("user", "\n".join(prompt)), Turn("assistant", answer)


def _text(record: Mapping[str, Any], key: str, where: Where, advice: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise DataError(f"{where}: '{key}' is {type(text).__name__}, not text; {advice}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell lone surrogates, as "\ud800"
        raise DataError(
            f"{where}: '{key}' holds half of a surrogate pair, which no UTF-8 text can; mend the line"
        ) from None
    return text
