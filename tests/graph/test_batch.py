from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from internevo_engine.graph.batch import describe


@dataclass
class Batch:
    tokens: Tensor
    temperature: float
    labels: Tensor


TOKENS, LABELS = torch.arange(3), torch.arange(3, 6)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (Batch(TOKENS, 0.5, LABELS), ("tokens", "labels")),
        ({"tokens": TOKENS, "temperature": 0.5, "labels": LABELS}, ("tokens", "labels")),
        ((TOKENS, LABELS), ("0", "1")),
        (TOKENS, ("input",)),
    ],
    ids=["dataclass", "mapping", "tuple", "tensor"],
)
def test_a_batch_is_taken_apart_and_put_together_again(batch: Any, names: tuple[str, ...]) -> None:
    layout = describe(batch)
    tensors = layout.tensors(batch)
    assert layout.names == tuple(tensors) == names
    rebuilt = layout.rebuild(tuple(tensors.values()))
    assert type(rebuilt) is type(batch)
    assert describe(rebuilt).tensors(rebuilt).keys() == tensors.keys()


def test_a_batch_with_another_constant_is_refused() -> None:
    layout = describe(Batch(TOKENS, 0.5, LABELS))
    with pytest.raises(ValueError, match=r"with {'temperature': 0.25} .* captured for tokens, labels with .*0.5"):
        layout.tensors(Batch(TOKENS, 0.25, LABELS))


def test_a_batch_that_is_no_collection_of_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match="a batch of type str; pass a dataclass"):
        describe("text")
