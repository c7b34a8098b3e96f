from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from internevo_engine.errors import UsageError
from internevo_engine.graph.batch import describe, move


@dataclass
class Batch:
    tokens: Tensor
    temperature: float
    labels: Tensor


class Pair(NamedTuple):
    tokens: Tensor
    labels: Tensor


TOKENS, LABELS = torch.arange(3), torch.arange(3, 6)


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (Batch(TOKENS, 0.5, LABELS), ("tokens", "labels")),
        ({"tokens": TOKENS, "temperature": 0.5, "labels": LABELS}, ("tokens", "labels")),
        ((TOKENS, LABELS), ("0", "1")),
        (Pair(TOKENS, LABELS), ("tokens", "labels")),
        (TOKENS, ("input",)),
    ],
    ids=["dataclass", "mapping", "tuple", "named tuple", "tensor"],
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
    with pytest.raises(UsageError, match=r"with {'temperature': 0.25} .* captured for tokens, labels with .*0.5"):
        layout.tensors(Batch(TOKENS, 0.25, LABELS))


def test_a_batch_that_is_no_collection_of_tensors_is_refused() -> None:
    with pytest.raises(UsageError, match="a batch of type str; pass a dataclass"):
        describe("text")


def test_tensors_below_the_entries_are_refused() -> None:
    with pytest.raises(UsageError, match=r"batch.inner is a dict of tensors; make each an entry of the batch"):
        describe({"tokens": TOKENS, "inner": {"labels": LABELS}})


@pytest.mark.parametrize("batch", [Batch(TOKENS, 0.5, LABELS), {"tokens": TOKENS, "name": "x"}, Pair(TOKENS, LABELS)])
def test_a_batch_moves_with_everything_in_it(batch: Any) -> None:
    moved = move(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert all(tensor.is_meta for tensor in describe(moved).tensors(moved).values())
    assert describe(moved).constants == describe(batch).constants
