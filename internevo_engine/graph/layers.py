"""graph: find the layers that repeat, and mark them so that capture traces each kind once.

Used by graph/trace.py while it traces. Whoever wants other regions decorates a forward with
`torch.compiler.nested_compile_region`; the mark is the same.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


def repeated_classes(model: nn.Module) -> set[type[nn.Module]]:
    """Classes of which a ModuleList of `model` holds two or more with equal parameter shapes.

    Bare modules of torch.nn, such as a list of Linear, are too small to be layers; inside a layer nothing is searched.
    """
    if isinstance(model, nn.ModuleList):
        kinds = Counter(_kind(child) for child in model if _is_layer(child))
        if found := {cls for (cls, _), count in kinds.items() if count > 1}:
            return found
    return {cls for child in model.children() for cls in repeated_classes(child)}


@contextmanager
def marked(classes: set[type[nn.Module]]) -> Iterator[None]:
    """While it lasts, every call of these classes' forward becomes a region of the traced graph."""
    with ExitStack() as stack:
        for cls in classes:
            stack.enter_context(_replaced_forward(cls, torch.compiler.nested_compile_region(cls.forward)))
        yield


@contextmanager
def _replaced_forward(cls: type[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    own = cls.__dict__.get("forward")
    cls.forward = forward
    try:
        yield
    finally:
        if own is None:  # it was inherited
            del cls.forward
        else:
            cls.forward = own


def _kind(module: nn.Module) -> tuple[type[nn.Module], tuple[tuple[str, torch.Size, torch.dtype], ...]]:
    return type(module), tuple((name, p.shape, p.dtype) for name, p in module.named_parameters())


def _is_layer(module: nn.Module) -> bool:
    return any(True for _ in module.children()) or not type(module).__module__.startswith("torch.nn.")
