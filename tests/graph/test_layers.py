import pytest
import torch
from torch import nn

from internevo_engine.graph.layers import marked, repeated_classes
from internevo_engine.models.decoder import Layer
from tests.graph.models import Block, Stack, Tied, decoder


class Mixed(nn.Module):
    """One of a kind, and a list of bare modules."""

    def __init__(self) -> None:
        super().__init__()
        self.once = nn.ModuleList([Block()])
        self.bare = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.ModuleList(Stack(2) for _ in range(2))


@pytest.mark.parametrize(
    ("model", "classes"),
    [
        (decoder(), {Layer}),
        (Tied(), {nn.TransformerEncoderLayer}),
        (Stack(1), set()),
        (Mixed(), set()),
        (Nested(), {Stack}),
    ],
    ids=["decoder", "torch.nn", "one", "bare", "nested"],
)
def test_layers_are_what_a_list_holds_twice(model: nn.Module, classes: set[type[nn.Module]]) -> None:
    assert repeated_classes(model) == classes


class Child(Block):
    """Inherits its forward."""


def test_a_mark_is_gone_when_it_ends_also_after_an_error() -> None:
    forward = Block.forward
    with marked({Block, Child}):
        assert Block.forward is not forward
        assert "forward" in vars(Child)
    with pytest.raises(RuntimeError), marked({Block, Child}):
        raise RuntimeError
    assert Block.forward is forward
    assert "forward" not in vars(Child)


def test_a_marked_layer_still_runs() -> None:
    layer = nn.Sequential(nn.Linear(2, 2))
    with marked({nn.Sequential}):
        assert layer(torch.ones(1, 2)).shape == (1, 2)
