"""graph: what a batch is made of. A captured graph takes tensors by name; batches come in any shape.

capture describes the example, the executor takes later batches apart with the same description.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from internevo_engine.errors import UsageError


@dataclass(frozen=True)
class BatchLayout:
    """The tensors of a batch by name, and everything else in it, on which the graph is specialized."""

    names: tuple[str, ...]
    constants: Mapping[str, object]
    build: Callable[[dict[str, Any]], Any]
    """All entries by name -> a batch like the example."""

    def tensors(self, batch: object) -> dict[str, Tensor]:
        """The tensors of a batch like the example.

        Raises:
            UsageError: it isn't like the example: other names, or other values of what isn't a tensor.
        """
        tensors, constants = _apart(_entries(batch)[0])
        if tuple(tensors) != self.names or constants != self.constants:
            raise UsageError(
                f"a batch of {', '.join(tensors)} with {constants or 'nothing else'} came to a graph captured for "
                f"{', '.join(self.names)} with {dict(self.constants) or 'nothing else'}; give every batch the entries "
                "of the first, or use graph.mode=hooks"
            )
        return tensors

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Any:
        """A batch like the example from its tensors, in the order of `names`."""
        return self.build({**dict(zip(self.names, tensors, strict=True)), **self.constants})


def describe(batch: object) -> BatchLayout:
    """The layout of a dataclass, a mapping, a sequence or a single tensor; tensors are looked for one level deep.

    Raises:
        UsageError: it is something else, or holds tensors deeper.
    """
    entries, build = _entries(batch)
    tensors, constants = _apart(entries)
    return BatchLayout(tuple(tensors), constants, build)


def move(batch: Any, device: torch.device) -> Any:
    """The batch on `device`: as its own `to` does it, else entry by entry."""
    if hasattr(batch, "to"):
        return batch.to(device)
    entries, build = _entries(batch)
    return build({name: entry.to(device) if isinstance(entry, Tensor) else entry for name, entry in entries.items()})


def _apart(entries: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, object]]:
    tensors = {name: entry for name, entry in entries.items() if isinstance(entry, Tensor)}
    constants = {name: entry for name, entry in entries.items() if name not in tensors}
    for name, entry in constants.items():
        inner = entry.values() if isinstance(entry, Mapping) else entry if isinstance(entry, list | tuple) else ()
        if any(isinstance(value, Tensor) for value in inner):
            raise UsageError(f"batch.{name} is a {type(entry).__name__} of tensors; make each an entry of the batch")
    return tensors, constants


def _entries(batch: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any]]:
    if isinstance(batch, Tensor):
        return {"input": batch}, lambda entries: entries["input"]
    if is_dataclass(batch):
        cls = type(batch)
        return {field.name: getattr(batch, field.name) for field in fields(batch)}, lambda entries: cls(**entries)
    if isinstance(batch, Mapping):
        return dict(batch), lambda entries: entries
    if isinstance(batch, tuple) and (names := getattr(batch, "_fields", None)):
        named = type(batch)
        return dict(zip(names, batch, strict=True)), lambda entries: named(**entries)
    if isinstance(batch, tuple | list):
        names = [str(index) for index in range(len(batch))]
        return dict(zip(names, batch, strict=True)), lambda entries: tuple(entries[name] for name in names)
    raise UsageError(f"a batch of type {type(batch).__name__}; pass a dataclass, a dict, a tuple or a tensor")
