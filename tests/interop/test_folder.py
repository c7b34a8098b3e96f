"""A folder appears whole or not at all, and writing it holds one shard and one tensor."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from internevo_engine.errors import StorageError
from internevo_engine.interop.folder import published, write_weights


def test_no_more_than_a_shard_and_a_tensor_are_in_memory(tmp_path: Path) -> None:
    alive, most = weakref.WeakSet[Tensor](), 0

    def tensors() -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for number in range(20):
            tensor = torch.zeros(250)
            alive.add(tensor)
            most = max(most, len(alive))
            yield str(number), tensor

    assert write_weights(tmp_path, tensors(), shard_bytes=3000) == 20_000
    assert len(list(tmp_path.glob("*.safetensors"))) == 7
    assert most == 3 + 1


def fail_half_way(folder: Path, error: type[BaseException]) -> None:
    (folder / "half").write_text("written")
    raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), published(tmp_path / "out") as folder:
        fail_half_way(folder, error)
    assert not [*tmp_path.iterdir()]


def test_a_place_that_can_not_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/out can't be written"), published(tmp_path / "file/out"):
        pass
