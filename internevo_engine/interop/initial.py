"""interop: the weights that a run begins with (run.init), read into a model one parameter at a time.

Rank 0 reads; the engine hands every rank its part of whatever plan there is.
"""

from dataclasses import asdict
from math import isclose
from pathlib import Path

from torch import nn

from internevo_engine.config.schema import Config, ModelConfig
from internevo_engine.errors import ConfigError, DataError
from internevo_engine.interop.adapters import Adapters, read_settings
from internevo_engine.interop.engine_folder import EngineFolder, load_weights, open_model
from internevo_engine.interop.sources import Hints
from internevo_engine.models.families import architecture

TRAINING_ONLY = ("init_std", "embed_init_std", "scaled_init", "embed_grad_scale")
"""What of an architecture says how to train it; weights don't depend on it."""


def open_initial(config: Config) -> EngineFolder:
    """Open what run.init names.

    Raises:
        DataError: it is nothing that the engine reads.
        ConfigError: it holds another model than the config describes.
    """
    assert config.run.init is not None, "asked only where there is something to begin with"
    path = Path(config.run.init)
    if not path.exists():
        raise DataError(f"run.init={path}: no such file or folder; name an engine folder, a run, or a model's folder")
    found = open_model(path, Hints(config))
    differences = _differences(found.config.model, config.model)
    if differences:
        found.tensors.__exit__()
        raise ConfigError(
            f"run.init={path} holds another model than the config describes ({'; '.join(differences)}); change "
            "`model`, or begin with other weights"
        )
    return found


def check_initial(config: Config) -> None:
    """What a dry run can know of run.init and lora.init: they are there and of this model. Raises as the two."""
    if config.run.init is not None:
        open_initial(config).tensors.__exit__()
    if config.lora.init is not None:
        open_adapters(config).__exit__()


def fill(model: nn.Module, config: Config) -> None:
    """Copy the weights of run.init, and the adapters of lora.init, into `model`, in its own dtype and device.

    Args:
        model: a Decoder of config.model and config.lora.

    Raises:
        DataError, ConfigError: as `open_initial`.
    """
    found = open_initial(config)
    with found.tensors as tensors:
        load_weights(model, tensors)
    if config.lora.init is not None:
        with open_adapters(config) as adapters:
            load_weights(model, adapters)


def open_adapters(config: Config) -> Adapters:
    """Open what lora.init names.

    Raises:
        DataError: no adapters, or such as the engine doesn't compute.
        ConfigError: adapters with other settings than the config's.
    """
    assert config.lora.init is not None, "asked only where there is something to begin with"
    folder = Path(config.lora.init)
    theirs, ours = read_settings(folder).lora, config.lora
    if (theirs.rank, theirs.alpha, {*theirs.targets}) != (ours.rank, ours.alpha, {*ours.targets}):
        raise ConfigError(
            f"lora.init={folder} has rank={theirs.rank}, alpha={theirs.alpha:g}, targets={sorted(theirs.targets)}; "
            f"the config asks rank={ours.rank}, alpha={ours.alpha:g}, targets={sorted(ours.targets)}: make them equal"
        )
    return Adapters(folder, config.model, config.lora)


def _differences(theirs: ModelConfig, ours: ModelConfig) -> list[str]:
    """['layers is 30 there and 2 in the config']; families that compute the same don't differ."""
    found, asked = asdict(architecture(theirs)), asdict(architecture(ours))
    return [
        f"{key} is {found[key]} there and {asked[key]} in the config"
        for key in found
        if key not in TRAINING_ONLY and not _equal(found[key], asked[key])
    ]


def _equal(theirs: object, ours: object) -> bool:
    """Some formats hold numbers in fp32."""
    if isinstance(theirs, float) and isinstance(ours, float):
        return isclose(theirs, ours, rel_tol=1e-6)
    return theirs == ours
