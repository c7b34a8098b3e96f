"""Loading: whatever was done to a checkpoint, it is refused, with the file's name, and in bounded memory."""

import ast
import json
import os
import pickle
import random
import shutil
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import internevo_engine
from internevo_engine.checkpoint.load import read_into, read_manifest
from internevo_engine.checkpoint.local import LocalFolder, LocalStorage
from internevo_engine.checkpoint.save import Saver
from internevo_engine.errors import CheckpointError
from tests.checkpoint.small import is_sound, load, names, publish, saver_of, small_view
from tests.checkpoint.two_files import publish_two_files

DATA, OTHER, MANIFEST = "rank-00000.safetensors", "rank-00001.safetensors", "manifest.json"
SEEDS = 25
"""Of each kind of damage."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of two files each."""
    root = tmp_path_factory.mktemp("sound")
    for step in (1, 2):
        publish_two_files(LocalStorage(root), step)
    return root


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """step-2, to be damaged; step-1 lies beside it."""
    shutil.copytree(sound, tmp_path / "copy")
    return tmp_path / "copy/step-2"


def refusal(folder: Path) -> str:
    """What loading into the state says."""
    view, place = small_view(-1), LocalFolder(folder)
    with pytest.raises(CheckpointError) as error:
        read_into(view, place, read_manifest(place, 2))
    return str(error.value)


def flip(path: Path, draw: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)


def truncate(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size))


@pytest.mark.parametrize("name", [DATA, OTHER, MANIFEST])
@pytest.mark.parametrize("damage", [flip, truncate])
def test_a_flipped_bit_or_a_lost_end_is_refused(copy: Path, damage: Callable[[Path, random.Random], None], name: str):
    sound_bytes = (copy / name).read_bytes()
    for seed in range(SEEDS):
        damage(copy / name, random.Random(seed))
        assert name in refusal(copy), f"seed {seed}"
        (copy / name).write_bytes(sound_bytes)
    place = LocalFolder(copy)
    read_into(small_view(-1), place, read_manifest(place, 2))  # no false alarm


def swap(folder: Path) -> None:
    (folder / DATA).rename(folder / "x")
    (folder / OTHER).rename(folder / DATA)
    (folder / "x").rename(folder / OTHER)


def link(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return make


def replace_by(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return replace


def write(name: str, raw: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(raw) and None


def step_1(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copyfile(folder.parent / "step-1" / name, folder / name) and None


HUGE_HEADER = (1 << 60).to_bytes(8, "little") + b"{}"
FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "files swapped": (swap, DATA),
    "file of another step": (step_1(DATA), DATA),
    "manifest of another step": (step_1(MANIFEST), "is of step 1"),
    "file missing": (lambda folder: (folder / OTHER).unlink(), f"missing files: ['{OTHER}']"),
    "manifest missing": (lambda folder: (folder / MANIFEST).unlink(), MANIFEST),
    "file of nobody": (write("rank-00002.safetensors", b"x"), "files of nobody: ['rank-00002.safetensors']"),
    "file is a link": (link(DATA, "../step-1/" + DATA), DATA),
    "manifest is a link": (link(MANIFEST, "/etc/passwd"), MANIFEST),
    "file is a folder": (replace_by(DATA, Path.mkdir), DATA),
    "file is a pipe": (replace_by(DATA, os.mkfifo), DATA),
    "manifest is a pipe": (replace_by(MANIFEST, os.mkfifo), MANIFEST),
    "header of 2^60 bytes": (write(DATA, HUGE_HEADER), "has 10 bytes"),
    "file empty": (write(DATA, b""), "has 0 bytes"),
    "manifest empty": (write(MANIFEST, b""), "0 bytes that are no manifest"),
    "manifest is a pickle": (write(MANIFEST, pickle.dumps({"step": 2})), "no manifest"),
    "manifest of 1 TB": (lambda folder: os.truncate(folder / MANIFEST, 1 << 40), "is larger than"),
    "file of 1 TB": (lambda folder: os.truncate(folder / DATA, 1 << 40), "has 1099511627776 bytes"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_was_tampered_with_is_refused(copy: Path, kind: str):
    tamper, says = FOLDERS[kind]
    tamper(copy)
    assert says in refusal(copy)


def sealed(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """A manifest by someone who knows how to compute its digest."""
    manifest = json.loads((folder / MANIFEST).read_bytes())["manifest"]
    edit(manifest)
    seal(folder, json.dumps(manifest).encode())


def seal(folder: Path, body: bytes) -> None:
    digest = sha256(body).hexdigest().encode()
    (folder / MANIFEST).write_bytes(b'{"sha256":"%s","manifest":%s}\n' % (digest, body))


def first_file(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["files"][0]


def first_stretch(manifest: dict[str, Any]) -> dict[str, Any]:
    return first_file(manifest)["stretches"][0]


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "version 2": (lambda m: m.update(version=2), "version"),
    "unknown key": (lambda m: m.update(run="x"), "run"),
    "missing key": (lambda m: m.pop("states"), "states"),
    "step as text": (lambda m: m.update(step="2"), "step"),
    "step below 0": (lambda m: m.update(step=-2), "step"),
    "name leads upwards": (lambda m: first_file(m).update(name="../step-1/" + DATA), "files.0.name"),
    "absolute name": (lambda m: first_file(m).update(name="/etc/passwd"), "files.0.name"),
    "name with a null byte": (lambda m: first_file(m).update(name="rank-00000\0.safetensors"), "files.0.name"),
    "file twice": (lambda m: m["files"].append(first_file(m)), "a name occurs twice"),
    "size of 2^60": (lambda m: first_file(m).update(size=1 << 60), "files.0.size"),
    "header of 1 TB": (lambda m: first_file(m).update(size=1 << 40), "are given"),
    "size 0": (lambda m: first_file(m).update(size=0), "files.0.size"),
    "size NaN": (lambda m: first_file(m).update(size=float("nan")), "manifest"),
    "chunks of 2^60 bytes": (lambda m: m.update(chunk_bytes=1 << 60), "chunk_bytes"),
    "chunks of 0 bytes": (lambda m: m.update(chunk_bytes=0), "chunk_bytes"),
    "other chunks": (lambda m: m.update(chunk_bytes=256), "are given"),
    "digest too short": (lambda m: first_file(m)["chunk_sha256"].append("ab"), "chunk_sha256"),
    "one digest more": (lambda m: first_file(m)["chunk_sha256"].append("0" * 64), "are given"),
    "other digest": (lambda m: first_file(m)["chunk_sha256"].__setitem__(0, "0" * 64), DATA),
    "other header digest": (lambda m: first_file(m).update(header_sha256="0" * 64), DATA),
    "length of 2^60": (lambda m: first_stretch(m).update(length=1 << 60), "length"),
    "length below 0": (lambda m: first_stretch(m).update(length=-1), "length"),
    "offset of 2^60": (lambda m: first_stretch(m).update(offset=1 << 60), "offset"),
    "offset beyond the end": (lambda m: first_stretch(m).update(offset=1 << 50), "not covered once each"),
    "gap": (lambda m: m["files"].pop(), "not covered once each"),
    "overlap": (lambda m: m["files"][1]["stretches"][0].update(offset=0), "not covered once each"),
    "parameter that isn't there": (lambda m: first_stretch(m).update(param=9), "are in the table"),
    "parameter twice": (lambda m: m["params"].append(m["params"][0]), "a name occurs twice"),
    "huge shape": (lambda m: m["params"][0].update(shape=[1 << 50, 1 << 50]), "not covered once each"),
    "shape with a 0": (lambda m: m["params"][0].update(shape=[0, 80]), "shape"),
    "other shape": (lambda m: m["params"][0].update(shape=[80]), "embedding.weight is (80,) in it and (20, 4)"),
    "other name": (lambda m: m["params"][0].update(name="lm_head"), "it has no parameter embedding.weight"),
    "other states": (
        lambda m: m.update(states=["master", "momentum", "exp_avg_sq"]),
        "it holds the states master, mom",
    ),
    "states swapped": (lambda m: m.update(states=["exp_avg", "master"]), "are given"),
    "no states": (lambda m: m.update(states=[]), "states"),
    "no files": (lambda m: m.update(files=[]), "are in the table"),
}


@pytest.mark.parametrize("kind", EDITS)
def test_a_manifest_with_a_right_digest_and_wrong_content_is_refused(copy: Path, kind: str):
    edit, says = EDITS[kind]
    sealed(copy, edit)
    assert says in refusal(copy)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10**6,
        b'{"a":' * 10**5,
        b"9" * 10**6,
        b'{"extra":"\\ud800"}',
        b"\xff\xfe",
        b"null",
        b'{"version":1,"version":1}',
        pickle.dumps(print),
        b"!!python/object/apply:os.system [id]",
    ],
    ids=[
        "deep list",
        "deep object",
        "long number",
        "half a surrogate",
        "no UTF-8",
        "null",
        "key twice",
        "pickle",
        "YAML",
    ],
)
def test_a_body_that_is_no_manifest_is_refused_in_bounded_memory(copy: Path, body: bytes):
    seal(copy, body)
    tracemalloc.start()
    assert MANIFEST in refusal(copy)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * len(body) + (1 << 20)


def test_a_link_to_a_checkpoint_is_none(copy: Path):
    (copy.parent / "step-3").symlink_to(copy)
    view, place = small_view(-1), LocalFolder(copy.parent / "step-3")
    with pytest.raises(CheckpointError, match="step-3"):
        read_into(view, place, read_manifest(place, 3))


def test_the_newest_that_verifies_wins_and_the_others_are_kept_aside(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    for step in (1, 2, 3, 4):
        publish(storage, step)
    flip(tmp_path / "step-4" / DATA, random.Random(1))
    truncate(tmp_path / "step-3" / DATA, random.Random(1))
    assert names(tmp_path) == ["step-2", "step-3", "step-4"]
    assert is_sound(storage, (2,))
    assert names(tmp_path) == ["refused-step-3.1", "refused-step-4.1", "step-2"]
    saver: Saver = saver_of(storage, 4)
    saver.save(4, {"step": 4})
    assert is_sound(storage, (4,))


def test_where_none_verifies_nothing_is_loaded_and_nothing_moved(tmp_path: Path):
    storage = LocalStorage(tmp_path)
    for step in (1, 2):
        publish(storage, step)
        (tmp_path / f"step-{step}" / DATA).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"verifies; of 2, the newest: .*step-2/rank-00000\.safetensors has 0 bytes"
    ):
        load(storage)
    assert names(tmp_path) == ["step-1", "step-2"]


def test_where_no_checkpoint_is_the_error_says_what_is_needed(tmp_path: Path):
    with pytest.raises(CheckpointError, match="nowhere holds no checkpoint: a folder with step-N folders"):
        load(LocalStorage(tmp_path / "nowhere"))


def test_nothing_that_reads_a_checkpoint_knows_pickle():
    for path in (Path(internevo_engine.__file__).parent / "checkpoint").glob("*.py"):
        tree = ast.parse(path.read_text())
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not words & {"pickle", "eval", "exec", "marshal", "allow_pickle"}, path
        assert not any(ast.unparse(n.func) == "torch.load" for n in ast.walk(tree) if isinstance(n, ast.Call)), path
