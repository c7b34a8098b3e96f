"""interop: the engine's own folder of a model, the exchange format of every conversion.

    ENGINE_DIR/config.yaml                             the model section, and data.seq_len
    ENGINE_DIR/model.safetensors, or shards and index  parameters under our names (models/families.py)
    ENGINE_DIR/tokenizer.model, tokenizer.json, ...    whichever there are

A finished run has one in RUN/final.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import nn

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config, ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.tensors import SafetensorsFiles, open_folder
from internevo_engine.models.families import parameters


@dataclass(frozen=True)
class EngineFolder:
    """An opened folder, whose weights fit its config."""

    path: Path
    config: Config
    tensors: SafetensorsFiles


def open_engine(path: Path) -> EngineFolder:
    """Open an engine folder, or the one of a run.

    Raises:
        DataError: neither of them, or the weights are not those of the config.
        ConfigError: a config.yaml that can't be read.
    """
    folder = path / "final" if (path / "final").is_dir() else path
    if not (folder / "config.yaml").is_file():
        raise DataError(f"{path} is no run and no engine folder: there is no {folder / 'config.yaml'}")
    config, tensors = load_config(folder / "config.yaml"), open_folder(folder)
    wanted = {param.name: param.shape for param in parameters(config.model)}
    if wanted != tensors.shapes:
        wrong = sorted(dict(wanted.items() ^ tensors.shapes.items()))
        raise DataError(f"{folder}: the weights are not those of its config.yaml, for example {wrong[0]}")
    return EngineFolder(folder, config, tensors)


@torch.no_grad()
def load_weights(model: nn.Module, folder: EngineFolder) -> None:
    """Fill the parameters of `model`, a Decoder of folder.config.model, one at a time, in its own dtype and device."""
    for name, parameter in model.named_parameters():
        parameter.copy_(folder.tensors.read(name))


def write_config(folder: Path, model: ModelConfig, max_len: int) -> None:
    """config.yaml of a model that comes from elsewhere, made for `max_len` positions."""
    sections = {"model": model.model_dump(mode="json"), "data": {"seq_len": max_len}}
    (folder / "config.yaml").write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
