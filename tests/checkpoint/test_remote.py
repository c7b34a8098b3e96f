"""Checkpoints under URLs: memory:// through fsspec, where the manifest publishes; file:// as the folder it is."""

from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from internevo_engine.checkpoint.local import LocalStorage
from internevo_engine.checkpoint.remote import open_storage
from internevo_engine.errors import CheckpointError, ConfigError, StorageError
from tests.checkpoint.small import is_sound, load, names, publish, saver_of


@pytest.fixture
def url() -> str:
    return f"memory://{uuid4().hex}/checkpoints"


def files(url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return sorted(path.removeprefix(f"{root}/") for path in filesystem.find(root))


def test_what_is_saved_under_a_url_loads_and_old_ones_go(url: str):
    storage = open_storage(url)
    for step in (1, 2, 3, 4):
        publish(storage, step)
    assert storage.steps() == [2, 3, 4]
    assert is_sound(open_storage(url), (4,))
    assert files(url)[:2] == ["step-2/manifest.json", "step-2/rank-00000.safetensors"]


def test_a_folder_without_a_manifest_is_no_checkpoint_and_is_swept_away(url: str):
    storage = open_storage(url)
    publish(storage, 1)
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/step-2/rank-00000.safetensors", b"half of it")
    assert is_sound(storage, (1,))
    publish(storage, 2)
    assert is_sound(storage, (2,))


def test_a_damaged_checkpoint_is_refused_and_set_aside(url: str):
    storage = open_storage(url)
    publish(storage, 1)
    publish(storage, 2)
    filesystem, root = fsspec.core.url_to_fs(url)
    path = f"{root}/step-2/rank-00000.safetensors"
    raw = bytearray(filesystem.cat_file(path))
    raw[-1] ^= 1
    filesystem.pipe_file(path, bytes(raw))
    assert is_sound(storage, (1,))
    assert "refused-step-2.1/manifest.json" in files(url)
    publish(storage, 2)
    assert is_sound(storage, (2,))


def test_nothing_is_overwritten_under_a_url(url: str):
    storage = open_storage(url)
    publish(storage, 1)
    with pytest.raises(StorageError):
        saver_of(storage, 9).save(1, {"step": 9})
    assert is_sound(storage, (1,))


def test_where_none_verifies_the_error_names_the_url(url: str):
    publish(open_storage(url), 1)
    filesystem, root = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(f"{root}/step-1/manifest.json", b"{}")
    with pytest.raises(CheckpointError, match=url):
        load(open_storage(url))


def test_a_file_url_is_the_folder_with_its_rename(tmp_path: Path):
    storage = open_storage(f"file://{tmp_path}")
    assert isinstance(storage, LocalStorage)
    publish(storage, 1)
    assert names(tmp_path) == ["step-1"]
    assert is_sound(storage, (1,))


def test_a_protocol_that_nobody_knows_is_a_config_error():
    with pytest.raises(ConfigError, match=r"checkpoint\.dir=nonsense://bucket"):
        open_storage("nonsense://bucket/run")
