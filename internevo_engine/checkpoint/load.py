"""checkpoint: the newest checkpoint that verifies becomes the state of the engine, whatever plan wrote it.

Every rank reads the stretches that it owns and compares the digests of exactly the bytes it reads; together the ranks
read every byte. All agree before any of them goes on: one that was refused leads all to the checkpoint before.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import torch

from internevo_engine.checkpoint.manifest import (
    ELEMENT_BYTES,
    FILE,
    MAX_BYTES,
    FileEntry,
    Manifest,
    ParamEntry,
    StretchEntry,
    decode,
    table_difference,
)
from internevo_engine.checkpoint.shard_file import Wanted, read_file
from internevo_engine.checkpoint.storage import Folder, Storage, read_small
from internevo_engine.checkpoint.view import MASTER, ShardedView, Stretch
from internevo_engine.errors import CheckpointError
from internevo_engine.runtime.communicator import Communicator

Accept = Callable[[Manifest], None]
"""Raises what should end the search, such as ConfigError, where the checkpoint is sound but not wanted."""


def whatever_verifies(manifest: Manifest) -> None:
    """Accept any."""


def load_newest(
    storage: Storage,
    view: ShardedView,
    communicator: Communicator,
    *,
    accept: Accept = whatever_verifies,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Fill the view's tensors; the caller still has to let the parameters follow. Every rank calls it.

    Checkpoints that were refused are renamed, so that the run can save the same steps again.

    Raises:
        CheckpointError: there is none that verifies; the tensors may be half filled.
    """
    steps = json.loads(communicator.agree(f"checkpoints at {storage.url}", json.dumps(storage.steps()))[0])
    refused: list[str] = []
    for number, step in enumerate(reversed(steps)):
        manifest, problem = _try(storage.published(step), step, view, accept)
        problem = _agree(communicator, f"load {number} from {storage.url}", manifest, problem)
        if manifest is not None and not problem:
            if communicator.rank == 0:
                for newer in steps[len(steps) - number :]:
                    storage.set_aside(newer)
            return manifest
        refused.append(problem)
        say(f"checkpoint step-{step} is refused: {problem}")
    if not refused:
        raise CheckpointError(f"{storage.url} holds no checkpoint: a folder with step-N folders in it is needed")
    raise CheckpointError(f"no checkpoint in {storage.url} verifies; of {len(refused)}, the newest: {refused[0]}")


def read_manifest(folder: Folder, step: int) -> Manifest:
    """The manifest of a published checkpoint, complete in itself; the files' contents aren't read.

    Raises:
        CheckpointError: it is damaged, of another step, or files are missing or were added.
    """
    manifest = decode(read_small(folder, FILE, MAX_BYTES), f"{folder.name}/{FILE}")
    if manifest.step != step:
        raise CheckpointError(f"{folder.name}/{FILE} is of step {manifest.step}: it belongs to another folder")
    expected, found = {FILE, *(file.name for file in manifest.files)}, set(folder.sizes())
    if expected != found:
        missing, added = sorted(expected - found), sorted(found - expected)
        raise CheckpointError(f"{folder.name}: missing files: {missing or 'none'}; files of nobody: {added or 'none'}")
    return manifest


def verify(folder: Folder, step: int) -> Manifest:
    """Read and compare every byte of a checkpoint.

    Raises:
        CheckpointError: a byte isn't what was written.
    """
    manifest = read_manifest(folder, step)
    for file in manifest.files:
        read_file(folder, file, len(manifest.states), None, chunk_bytes=manifest.chunk_bytes)
    return manifest


def read_into(view: ShardedView, folder: Folder, manifest: Manifest) -> None:
    """Fill the view's tensors from the files that hold parts of them.

    Raises:
        CheckpointError: it is of another model, or a file isn't what was written.
    """
    params = [ParamEntry(name=param.name, shape=param.shape) for param in view.params]
    if difference := table_difference(params, view.states, manifest):
        raise CheckpointError(f"{folder.name} is of another model: {difference}")
    wanted: dict[str, list[Wanted]] = defaultdict(list)
    places = _places(manifest)
    for stretch in view.stretches:
        for file, entry, begin in places[view.params[stretch.param].name]:
            wanted[file.name] += _overlap(stretch, entry, begin, view.states, manifest.states)
    for file in manifest.files:
        if wanted[file.name]:
            read_file(folder, file, len(manifest.states), wanted[file.name], chunk_bytes=manifest.chunk_bytes)


def read_masters(folder: Folder, manifest: Manifest, masters: Mapping[str, torch.Tensor]) -> None:
    """Fill whole fp32 parameters, by name, with the weights of a checkpoint: no plan, no optimizer, one process.

    Raises:
        CheckpointError: it is of another model, or a file isn't what was written.
    """
    params = [ParamEntry(name=name, shape=tuple(tensor.shape)) for name, tensor in masters.items()]
    if difference := table_difference(params, manifest.states, manifest):
        raise CheckpointError(f"{folder.name} is of another model: {difference}")
    stretches = {name: Stretch(0, 0, (tensor.view(-1),)) for name, tensor in masters.items()}
    wanted: dict[str, list[Wanted]] = defaultdict(list)
    for name, places in _places(manifest).items():
        for file, entry, begin in places:
            wanted[file.name] += _overlap(stretches[name], entry, begin, (MASTER,), manifest.states)
    for file in manifest.files:
        read_file(folder, file, len(manifest.states), wanted[file.name], chunk_bytes=manifest.chunk_bytes)


def _places(manifest: Manifest) -> dict[str, list[tuple[FileEntry, StretchEntry, int]]]:
    """For each parameter, the stretches of it: their file, and where they begin in it."""
    places: dict[str, list[tuple[FileEntry, StretchEntry, int]]] = defaultdict(list)
    for file in manifest.files:
        for entry, begin in zip(file.stretches, file.begins(len(manifest.states)), strict=True):
            places[manifest.params[entry.param].name].append((file, entry, begin))
    return places


def _overlap(
    stretch: Stretch, entry: StretchEntry, begin: int, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> Iterator[Wanted]:
    first = max(stretch.offset, entry.offset)
    last = min(stretch.offset + stretch.length, entry.offset + entry.length)
    if first >= last:
        return
    for state, tensor in zip(ours, stretch.tensors, strict=True):
        element = theirs.index(state) * entry.length + first - entry.offset
        target = tensor[first - stretch.offset : last - stretch.offset].view(torch.uint8)
        yield Wanted(begin + element * ELEMENT_BYTES, target)


def _try(folder: Folder, step: int, view: ShardedView, accept: Accept) -> tuple[Manifest | None, str]:
    try:
        manifest = read_manifest(folder, step)
        accept(manifest)
        read_into(view, folder, manifest)
    except CheckpointError as error:
        return None, str(error)
    return manifest, ""


def _agree(communicator: Communicator, name: str, manifest: Manifest | None, problem: str) -> str:
    """The first problem of any rank; all must have read the same manifest."""
    digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest() if manifest else ""
    problems = communicator.agree(f"{name}: problem", problem)
    digests = communicator.agree(f"{name}: manifest", digest)
    differ = "ranks see different manifests: checkpoint.dir must be a folder that all hosts share"
    return next(filter(None, problems), "") or (differ if len(set(digests)) > 1 else "")
