"""graph: what a loss function is, to whoever calls it: capture, eager autograd, evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LossFunction = Callable[[Any, Any], Tensor | tuple[Tensor, Tensor | int]]
"""(model, batch) -> (sum of the loss over valid tokens, number of valid tokens), or a mean, which counts as 1.

A step's loss is the sum over all micro-batches and ranks divided by that of the counts: with a sum and a count every
token weighs the same, with a mean every micro-batch.
"""


def loss_and_count(loss_fn: LossFunction, model: object, batch: object) -> tuple[Tensor, Tensor]:
    """The loss and what it is divided by, as tensors; the count without a gradient."""
    result = loss_fn(model, batch)
    loss, count = result if isinstance(result, tuple) else (result, 1)
    return loss, count.detach() if isinstance(count, Tensor) else torch.full((), count, device=loss.device)
