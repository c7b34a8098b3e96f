"""interop: the engine's own folder of a model, the exchange format of every conversion.

    ENGINE_DIR/config.yaml                             the model section, and data.seq_len
    ENGINE_DIR/model.safetensors, or shards and index  parameters under our names (models/families.py)
    ENGINE_DIR/tokenizer.model, tokenizer.json, ...    whichever there are

A finished run has one in RUN/final; that of a LoRA run holds adapters instead of weights (adapters.py), and reads as
merged. `open_model` sees anything that the engine reads as such a folder, tensor by tensor.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import torch
import yaml
from torch import Tensor, nn

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config, DataConfig, ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.adapters import BASE, SETTINGS, Adapters, Base, MergedTensors, read_settings
from internevo_engine.interop.formats import checked_moves, open_source
from internevo_engine.interop.names import Move
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import OpenTensors, Tensors, open_folder, read_json, read_moves
from internevo_engine.models.families import architecture, parameters


@dataclass(frozen=True)
class EngineFolder:
    """An opened folder, whose weights fit its config."""

    path: Path
    config: Config
    tensors: OpenTensors


def open_model(path: Path, hints: Hints) -> EngineFolder:
    """An engine folder, a run, or a model from elsewhere, its tensors under our names.

    Raises:
        DataError: none of them, damaged, or another model than it says.
    """
    if (path / "final").is_dir() or (path / "config.yaml").is_file():
        return open_engine(path)
    with ExitStack() as stack:
        scratch = stack.enter_context(TemporaryDirectory())
        source = open_source(path, hints, Path(scratch), stack)
        tensors = ConvertedTensors(source, checked_moves(source), stack.pop_all())
    return EngineFolder(path, Config(model=source.model, data=DataConfig(seq_len=source.max_len)), tensors)


def with_adapters(base: EngineFolder, adapters: Path) -> EngineFolder:
    """The same model, with adapters of peft's merged into each tensor that is read.

    Raises:
        DataError: they are none that the engine computes, or another model's.
    """
    model, lora = base.config.model, read_settings(adapters).lora
    return replace(base, tensors=MergedTensors(base.tensors, Adapters(adapters, model, lora), model, lora))


class ConvertedTensors:
    """The tensors of a model from elsewhere, each put together when it is read."""

    def __init__(self, source: Source, moves: list[Move], stack: ExitStack) -> None:
        self._source, self._stack = source, stack
        self._moves = {move.param.name: move for move in moves}
        self.shapes = {name: move.param.shape for name, move in self._moves.items()}

    def read(self, name: str) -> Tensor:
        found = read_moves(self._source.tensors, [self._moves[name]], architecture(self._source.model))
        return next(tensor for _, tensor in found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def open_engine(path: Path) -> EngineFolder:
    """Open an engine folder, or the one of a run.

    Raises:
        DataError: neither of them, or the weights are not those of the config.
        ConfigError: a config.yaml that can't be read.
    """
    folder = path / "final" if (path / "final").is_dir() else path
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{path} is no run and no engine folder: there is no {folder / 'config.yaml'}")
    config = load_config(folder / "config.yaml")
    tensors = _merged(folder, config) if (folder / SETTINGS).is_file() else open_folder(folder)
    wanted = {param.name: param.shape for param in parameters(config.model)}
    if wanted != tensors.shapes:
        wrong = sorted(dict(wanted.items() ^ tensors.shapes.items()))
        raise DataError(f"{folder}: the weights are not those of its config.yaml, for example {wrong[0]}")
    return EngineFolder(folder, config, tensors)


def _merged(folder: Path, config: Config) -> OpenTensors:
    """The base's tensors with the folder's adapters, if the base is still the one that they were trained beside."""
    base = Base.model_validate(read_json(folder / BASE))
    path = Path(base.path)
    if not path.exists():
        raise DataError(
            f"{folder} holds adapters, and the weights that they belong to are gone: {path}; bring them back"
        )
    if (found := Base.of(path).sha256) != base.sha256:
        raise DataError(
            f"{folder} holds adapters of weights with SHA-256 {base.sha256}, and {path} has {found}; bring the old "
            "weights back"
        )
    return with_adapters(open_model(path, Hints(config)), folder).tensors


@torch.no_grad()
def load_weights(model: nn.Module, tensors: Tensors) -> None:
    """Fill the parameters of `model`, a Decoder, that there are tensors for, one at a time, in its dtype and device."""
    for name in tensors.shapes:
        model.get_parameter(name).copy_(tensors.read(name))


def write_config(folder: Path, model: ModelConfig, max_len: int) -> None:
    """config.yaml of a model that comes from elsewhere, made for `max_len` positions."""
    sections = {"model": model.model_dump(mode="json"), "data": {"seq_len": max_len}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
