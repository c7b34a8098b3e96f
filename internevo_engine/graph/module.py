"""graph: what the engine has to know of a module that is not ours, and how it looks at one.

Hands the parameter table to plan/plan.py; the same table for our decoder as models/families.py gives without torch.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from internevo_engine.errors import ConfigError
from internevo_engine.graph.layers import repeated_classes
from internevo_engine.models.initialize import TORCH_DTYPES
from internevo_engine.plan.params import Param

DEVICES = ("cpu", "cuda")


def parameter_table(model: nn.Module) -> tuple[Param, ...]:
    """Parameters that live in flat buffers, shared ones once, in the order of definition.

    A repeated layer is a layer, and so is what stands before, between and after them; in a model that repeats nothing,
    each module with parameters of its own.
    """
    classes = repeated_classes(model)
    layers = {
        name
        for name, module in model.named_modules()
        if (type(module) in classes if classes else any(True for _ in module.parameters(recurse=False)))
    }
    table, number, last = list[Param](), 0, None
    for name, parameter in placed(model).items():
        layer = _layer_of(name, layers)
        number += last not in (None, layer)
        last = layer
        table.append(Param(name, tuple(parameter.shape), number, parameter.requires_grad))
    return tuple(table)


def _layer_of(parameter: str, layers: Set[str]) -> str:
    """The outermost of the modules in `layers` that holds the parameter; '' for one outside them."""
    parts = parameter.split(".")
    prefixes = (".".join(parts[:length]) for length in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in layers), "")


def placed(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that live in flat buffers, by name: trained ones, and frozen ones of their dtype and device."""
    kinds = {(p.device, p.dtype) for p in model.parameters() if p.requires_grad}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or (parameter.device, parameter.dtype) in kinds
    }


def unplaced(model: nn.Module) -> Iterator[Tensor]:
    """The module's own: frozen parameters of another dtype, and buffers."""
    names = placed(model)
    return chain((p for name, p in model.named_parameters() if name not in names), model.buffers())


def device_and_dtype(model: nn.Module) -> tuple[torch.device, str]:
    """Device and dtype ('fp32' or 'bf16') of the trained parameters: they travel and are updated in flat buffers.

    Raises:
        ConfigError: there is none, or they differ, or no kernel knows their dtype or device.
    """
    found: dict[tuple[torch.device, torch.dtype], str] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((parameter.device, parameter.dtype), name)
    if not found:
        raise ConfigError("the model has no parameter with requires_grad=True; there is nothing to train")
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise ConfigError(
            f"{first} is {one[1]} on {one[0]}, {second} is {other[1]} on {other[0]}; the trained parameters need one "
            "dtype and one device: model.to(device, dtype)"
        )
    ((device, dtype), name), *_ = found.items()
    names = {torch_dtype: name for name, torch_dtype in TORCH_DTYPES.items()}
    if device.type not in DEVICES or dtype not in names:
        raise ConfigError(
            f"{name} is {dtype} on {device}; the engine trains {' and '.join(names.values())} "
            f"on {' and '.join(DEVICES)}: move the model first"
        )
    return device, names[dtype]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in evaluation mode; afterwards each is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
