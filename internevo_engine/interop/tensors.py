"""interop: tensors by name, read one at a time; what every format looks like to a converter.

`SafetensorsFiles` is one of them: engine folders and Hugging Face folders. `read_moves` yields our parameters.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from internevo_engine.errors import DataError
from internevo_engine.interop.names import Move
from internevo_engine.models.families import Architecture

DTYPES: Mapping[torch.dtype, torch.dtype] = {
    torch.bfloat16: torch.bfloat16,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
}
"""What is read becomes what is kept: the engine trains in bf16 or fp32, and fp32 holds every fp16 number."""
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64_000_000
_SHOWN = 5
"""Names that an error spells out."""


class Tensors(Protocol):
    """A place that tensors are read from."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's name and shape."""
        ...

    def read(self, name: str) -> Tensor: ...


class OpenTensors(Tensors, Protocol):
    """To be closed: `with` does."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...


class SafetensorsFiles:
    """The tensors of some .safetensors files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read the headers, not the tensors.

        Raises:
            DataError: a missing or damaged file.
        """
        self.shapes = dict[str, tuple[int, ...]]()
        self._open = ExitStack()
        self._files = dict[str, safe_open]()
        for path in paths:
            self._add(path)

    def _add(self, path: Path) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
            names = file.keys()
            for name in names:
                self.shapes[name] = tuple(file.get_slice(name).get_shape())
                self._files[name] = file
        except FileNotFoundError:
            raise DataError(f"{path} is missing; copy the folder again") from None
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is not a whole safetensors file ({error}); copy it again") from error

    def read(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()


def open_folder(folder: Path) -> SafetensorsFiles:
    """The weights of a folder: the files that its index names, else all its .safetensors files.

    Raises:
        DataError: no weights, a missing or damaged file, or an index that points out of the folder.
    """
    return SafetensorsFiles(_weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise DataError(f"{index}: weight_map must say which file holds which tensor; copy the folder again")
        return [_inside(folder, name, index) for name in sorted({*names.values()})]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    if pickles := sorted(path.name for path in folder.glob("*.bin")):
        raise DataError(
            f"{folder} holds its weights as pickle ({pickles[0]}), which can run code when it is read; take the "
            "model's safetensors files, or write them with transformers: model.save_pretrained(FOLDER)"
        )
    raise DataError(f"{folder} holds no .safetensors file")


def _inside(folder: Path, name: str, index: Path) -> Path:
    if Path(name).name != name:
        raise DataError(f"{index}: {name!r} points out of the folder; such an index is not to be trusted")
    return folder / name


def read_json(path: Path) -> dict[str, object]:
    """An object from a JSON file of bounded size.

    Raises:
        DataError: not there, too large, or not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise DataError(f"{path} is larger than {MAX_JSON_BYTES} bytes; this is no such file")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, found {type(value).__name__}")
    return value


def check(tensors: Tensors, moves: Sequence[Move], where: Path, *, ignored: Sequence[str] = ()) -> None:
    """Compare names and shapes before anything is read.

    Args:
        ignored: endings of names that carry nothing trained, such as rotary tables.

    Raises:
        DataError: tensors that are missing, of another shape, or that no parameter is made of.
    """
    wanted = {name: shape for move in moves for name, shape in zip(move.names, move.shapes, strict=True)}
    found = tensors.shapes
    unknown = [name for name in found if name not in wanted and not name.endswith(tuple(ignored))]
    problems = {
        "missing": [name for name in wanted if name not in found],
        "of another shape": [
            f"{name} {list(found[name])}, the model's shape needs {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ],
        "unknown": unknown,
    }
    texts = [f"{len(names)} tensors {kind}: {_some(names)}" for kind, names in problems.items() if names]
    if texts:
        raise DataError(f"{where} doesn't hold the model that its configuration describes: {'; '.join(texts)}")


def read_moves(tensors: Tensors, moves: Sequence[Move], arch: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Our parameters by name, one in memory at a time.

    Raises:
        DataError: a dtype that the engine doesn't train in.
    """
    for move in moves:
        parts = [_trainable(name, tensors.read(name)) for name in move.names]
        yield move.param.name, move.layout.join(parts, arch)


def _trainable(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES:
        raise DataError(f"{name} has dtype {tensor.dtype}; the engine reads fp32, bf16 and fp16")
    return tensor.to(DTYPES[tensor.dtype])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
