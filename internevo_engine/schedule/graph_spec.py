"""schedule: what scheduling needs to know of a captured step. Plain data, no torch; graph hands it over.

One micro-batch as an ordered list of calls, forward first, then loss, then backward, and the values between them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Phase = Literal["fwd", "loss", "bwd"]


@dataclass(frozen=True)
class ValueSpec:
    """An activation, a saved tensor, a gradient, or an input from the batch (then no call writes it)."""

    name: str
    """Without the leading % of a Program: 'h0'."""
    bytes: int


@dataclass(frozen=True)
class CallSpec:
    """A call of a compiled region."""

    name: str
    """'fwd.layers.3', say; unique."""
    phase: Phase
    flops: int
    bytes_moved: int
    """Of memory, read and written, parameters included."""
    reads: tuple[str, ...]
    """Values, in the order of the region's operands; parameters follow them."""
    writes: tuple[str, ...]
    params: tuple[int, ...]
    """Indices of the parameters it reads, in the parameter table."""
    grads: Mapping[str, int]
    """Which of `writes` is the gradient of which parameter."""


@dataclass(frozen=True)
class GraphSpec:
    """One micro-batch."""

    calls: tuple[CallSpec, ...]
    """In execution order."""
    values: tuple[ValueSpec, ...]
    loss: tuple[str, ...]
    """Values that are summed over micro-batches and ranks: the loss's sum and count."""

    @property
    def gradient_of(self) -> dict[int, str]:
        """The value that is the gradient of each parameter; one without is not in it."""
        return {param: value for call in self.calls for value, param in call.grads.items()}
