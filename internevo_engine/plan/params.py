"""plan: the parameter table. What the planner knows of a model: names, shapes, layers; no tensor, no torch."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Param:
    """One parameter.

    `layer` orders the forward pass: 0 is the embedding, 1..L the decoder layers, L + 1 final norm and head. For
    any other module graph/module.py numbers them.
    """

    name: str
    shape: tuple[int, ...]
    layer: int
    trained: bool = True
    """False: frozen. It is held and gathered like any other, and has neither gradient nor optimizer states."""

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Norm weights and biases are vectors; weight decay leaves them alone by default."""
        return len(self.shape) > 1
