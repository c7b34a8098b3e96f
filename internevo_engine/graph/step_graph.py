"""graph: what capture hands on. The step of one micro-batch as calls of few regions, and the values between them.

The schedule reads it as data: who reads and writes which value, how many bytes, how much work. The runtime runs the
regions. Nothing here computes.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from internevo_engine.graph.batch import BatchLayout
from internevo_engine.units import format_bytes, format_count

Phase = Literal["fwd", "loss", "bwd"]
"""loss: the last forward region together with the first backward region; nothing is kept between them."""


Runnable = Callable[..., tuple[Tensor, ...]]
"""A region that runs: tensors in the order of the call's inputs -> its outputs."""


@dataclass(frozen=True, eq=False)
class Region:
    """A piece of the step, compiled once and called for every layer like it."""

    name: str
    module: GraphModule
    """Takes the call's inputs in order, returns a tuple of its outputs. Changes no input, returns no view of one."""
    flops: int
    """Of matrix products and attention."""
    bytes_moved: int
    """Read and written by its ops one by one."""


@dataclass(frozen=True)
class Call:
    """One call of a region, by names of values."""

    name: str
    """Phase and the modules whose parameters it uses: 'bwd.layers.3'."""
    phase: Phase
    region: Region
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the step: a parameter, a buffer, part of the batch, or the output of a call."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    producer: int | None
    """Number of the call that computes it; None: it is there from the start."""
    consumers: tuple[int, ...]
    """Numbers of the calls that read it, rising."""

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StepGraph:
    """Forward, loss and backward of one micro-batch."""

    calls: tuple[Call, ...]
    """In an order that can be executed: forward, loss, backward."""
    values: Mapping[str, Value]
    parameters: tuple[str, ...]
    """Those in flat buffers, in the order of named_parameters; also such as the loss doesn't use."""
    gradients: Mapping[str, str]
    """Parameter -> the value that is its gradient; frozen ones, and such as the loss doesn't use, are missing."""
    constants: Mapping[str, Tensor]
    """Buffers, and frozen parameters of another dtype: the model's own tensors."""
    batch: BatchLayout
    batch_values: tuple[str, ...]
    """Values that the batch's tensors are, in the order of `batch.names`."""
    loss: str
    """fp32 0-dim, summed over the valid tokens."""
    count: str
    """0-dim, the number of valid tokens."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """Each region once, in the order of the first call."""
        return tuple(dict.fromkeys(call.region for call in self.calls))

    @property
    def kept(self) -> tuple[Value, ...]:
        """What the forward computes and the backward reads: the activations in memory between the two."""
        phases = [call.phase for call in self.calls]
        return tuple(
            value
            for value in self.values.values()
            if value.producer is not None
            and phases[value.producer] == "fwd"
            and any(phases[number] == "bwd" for number in value.consumers)
        )

    @property
    def kept_bytes(self) -> int:
        return sum(value.num_bytes for value in self.kept)

    def __str__(self) -> str:
        """A line for the whole, then a line a call."""
        head = (
            f"{len(self.calls)} calls of {len(self.regions)} regions, {len(self.parameters)} parameters, "
            f"{format_bytes(self.kept_bytes)} kept from forward to backward"
        )
        return "\n".join([head, *(self._line(number, call) for number, call in enumerate(self.calls))])

    def _line(self, number: int, call: Call) -> str:
        work = f"{format_count(call.region.flops)} FLOP {format_bytes(call.region.bytes_moved)}"
        return (
            f"{number:4} {call.name:24} {call.region.name:8} {work:24} {self._list(call.inputs)} -> "
            f"{self._list(call.outputs)}"
        )

    def _list(self, names: tuple[str, ...]) -> str:
        """The values that calls of different layers share by name; the others by how many they are and their bytes."""
        parameters, gradients, kept = set(self.parameters), set(self.gradients.values()), {v.name for v in self.kept}
        kinds = dict.fromkeys(parameters, "parameters") | dict.fromkeys(gradients, "gradients")
        kinds |= {name: "kept" for name in kept if len(self.values[name].consumers) == 1}
        counted = defaultdict[str, list[str]](list)
        for name in names:
            counted[kinds.get(name, "")].append(name)
        named = counted.pop("", [])
        return " ".join([*named, *(self._sum(kind, of_kind) for kind, of_kind in counted.items())])

    def _sum(self, kind: str, names: list[str]) -> str:
        return f"[{len(names)} {kind} {format_bytes(sum(self.values[name].num_bytes for name in names))}]"
