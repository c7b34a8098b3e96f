"""checkpoint: manifest.json, what a checkpoint holds and the digests of all its bytes; save.py writes, load.py reads.

    {"sha256":"<of the rest>","manifest":{...}}

It is read as if a stranger wrote it: bounded in size, its digest checked before it is parsed, every number bounded and
every name of a fixed form. A Manifest that exists is complete: each parameter is covered once, without gap or overlap.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from internevo_engine.errors import CheckpointError

FORMAT_VERSION = 1
FILE = "manifest.json"
MAX_BYTES = 256 << 20
"""Of manifest.json: about 100 bytes a stretch, and 67 a chunk."""
ELEMENT_BYTES = 4
"""All states are fp32."""
MAX_CHUNK_BYTES = 64 << 20
MAX_HEADER_BYTES = 100_000_000
"""What safetensors readers accept."""

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Positive = Annotated[int, Field(gt=0, le=1 << 53)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(min_length=1, max_length=1024)]

_ENVELOPE = re.compile(rb'\{"sha256":"([0-9a-f]{64})","manifest":(.*)\}\n', re.DOTALL)


class Entry(BaseModel):
    """Base of all parts: unknown keys, wrong types and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class ParamEntry(Entry):
    """A row of the parameter table."""

    name: Name
    shape: Annotated[tuple[Positive, ...], Field(max_length=16)]

    @property
    def numel(self) -> int:
        return prod(self.shape)


class StretchEntry(Entry):
    """Consecutive elements of a flattened parameter."""

    param: Count
    """Row of the parameter table."""
    offset: Count
    length: Positive


class FileEntry(Entry):
    """One safetensors file: a header, then for each stretch its states one after the other, without holes."""

    name: Annotated[str, Field(pattern=r"^rank-[0-9]{5}\.safetensors$")]
    size: Positive
    """Bytes, header included."""
    header_sha256: Digest
    chunk_sha256: tuple[Digest, ...]
    """Of each `chunk_bytes` of the data behind the header; the last may be shorter."""
    stretches: Annotated[tuple[StretchEntry, ...], Field(min_length=1)]

    def data_bytes(self, num_states: int) -> int:
        """Behind the header."""
        return sum(stretch.length for stretch in self.stretches) * num_states * ELEMENT_BYTES

    def begins(self, num_states: int) -> list[int]:
        """Where each stretch begins, in bytes behind the header."""
        lengths = (stretch.length * num_states * ELEMENT_BYTES for stretch in self.stretches)
        return list(accumulate(lengths, initial=0))[:-1]


class PlanEntry(Entry):
    """Who wrote it, for people; a reader may have any other plan."""

    world: Positive
    param: Positive
    grad: Positive
    optim: Positive
    dtype: Name


class Manifest(Entry):
    """A complete checkpoint."""

    version: Literal[1]
    """FORMAT_VERSION of the writer."""
    run_id: Name
    step: Count
    """Updates done."""
    plan: PlanEntry
    states: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)]
    params: tuple[ParamEntry, ...]
    chunk_bytes: Annotated[int, Field(gt=0, le=MAX_CHUNK_BYTES)]
    files: tuple[FileEntry, ...]
    extra: dict[str, JsonValue]
    """The trainer's own: data cursor, seed, configuration."""

    @model_validator(mode="after")
    def _is_complete(self) -> "Manifest":
        for names in ([param.name for param in self.params], [file.name for file in self.files], self.states):
            if len(set(names)) != len(names):
                raise ValueError("a name occurs twice")
        for file in self.files:
            self._check_sizes(file)
        self._check_cover()
        return self

    def _check_sizes(self, file: FileEntry) -> None:
        num_bytes = file.data_bytes(len(self.states))
        num_chunks = -(-num_bytes // self.chunk_bytes)
        if not 0 < file.size - num_bytes <= MAX_HEADER_BYTES or len(file.chunk_sha256) != num_chunks:
            raise ValueError(
                f"{file.name}: its stretches are {num_bytes} bytes in {num_chunks} chunks, but size={file.size} "
                f"and {len(file.chunk_sha256)} digests are given"
            )

    def _check_cover(self) -> None:
        stretches: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for stretch in (stretch for file in self.files for stretch in file.stretches):
            stretches[stretch.param].append((stretch.offset, stretch.offset + stretch.length))
        if set(stretches) != set(range(len(self.params))):
            raise ValueError(f"stretches of {len(stretches)} parameters, {len(self.params)} are in the table")
        for index, param in enumerate(self.params):
            ranges = sorted(stretches[index])
            meets = all(left[1] == right[0] for left, right in pairwise(ranges))
            if not meets or ranges[0][0] != 0 or ranges[-1][1] != param.numel:
                raise ValueError(f"{param.name}: its {param.numel} elements are not covered once each")


def encode(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    body = manifest.model_dump_json().encode()
    return b'{"sha256":"%s","manifest":%s}\n' % (hashlib.sha256(body).hexdigest().encode(), body)


def decode(raw: bytes, where: str) -> Manifest:
    """Read what `encode` wrote.

    Raises:
        CheckpointError: a byte was changed, or it is not a complete checkpoint of this format.
    """
    envelope = _ENVELOPE.fullmatch(raw)
    if envelope is None:
        raise CheckpointError(f"{where}: {len(raw)} bytes that are no manifest: cut short, or not written by a save")
    found = hashlib.sha256(envelope[2]).hexdigest()
    if found != envelope[1].decode():
        raise CheckpointError(f"{where} has SHA-256 {found}, but says {envelope[1].decode()}: it was changed")
    try:
        return Manifest.model_validate_json(envelope[2])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in first["loc"]) or "the manifest"
        text = first["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{where}: {place}: {text}; this version reads format {FORMAT_VERSION}") from None


def table_difference(params: Sequence[ParamEntry], states: Sequence[str], manifest: Manifest) -> str | None:
    """How a model differs from the one that a checkpoint holds; None: it doesn't."""
    if set(states) != set(manifest.states):
        return f"it holds the states {', '.join(manifest.states)}, this optimizer has {', '.join(states)}"
    ours, theirs = ({param.name: param.shape for param in table} for table in (params, manifest.params))
    if missing := sorted(ours.keys() - theirs.keys()):
        return f"it has no parameter {missing[0]} ({len(missing)} are missing)"
    if unknown := sorted(theirs.keys() - ours.keys()):
        return f"it has a parameter {unknown[0]} that the model lacks ({len(unknown)} in all)"
    changed = [name for name, shape in ours.items() if theirs[name] != shape]
    return f"{changed[0]} is {theirs[changed[0]]} in it and {ours[changed[0]]} in the model" if changed else None
