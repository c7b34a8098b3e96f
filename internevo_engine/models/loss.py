"""models: the training loss of one packed micro-batch.

Hands the loop a sum and a count, never a mean: the step's loss is the sum over all micro-batches and ranks, divided by
the number of counted tokens of all of them.

Legend: P packed tokens, V vocabulary, D pieces.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""Label of a position that is not counted."""

LOGITS_AT_ONCE = 2**26
"""Logits that exist in fp32 at the same time: 256 MB."""


class PackedBatch(Protocol):
    """A packed micro-batch; data/packing.py makes it."""

    @property
    def tokens(self) -> Tensor:
        """int64 [P]"""
        ...

    @property
    def labels(self) -> Tensor:
        """int64 [P]: the next token, or IGNORED"""
        ...

    @property
    def positions(self) -> Tensor:
        """int64 [P], from 0 in each piece"""
        ...

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 [D + 1], cumulative lengths of the pieces"""
        ...


def token_loss(decoder: Callable[[Tensor, Tensor, Tensor], Tensor], batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Cross entropy summed over the counted tokens (fp32 scalar, nats), and their number (int64 scalar).

    `decoder` is a Decoder or a wrapper of one: (tokens, positions, cu_seqlens) -> logits [P, V]. A batch in which no
    token counts has loss 0 and zero gradients.
    """
    logits_PV = decoder(batch.tokens, batch.positions, batch.cu_seqlens)
    return summed_cross_entropy(logits_PV, batch.labels), (batch.labels != IGNORED).sum()


def token_scores(decoder: Callable[[Tensor, Tensor, Tensor], Tensor], batch: PackedBatch) -> Tensor:
    """Of the counted tokens: cross entropy summed (nats), how many have the largest logit, and how many there are.

    fp64 [3]. For evaluation, outside of the captured step.
    """
    logits_PV = decoder(batch.tokens, batch.positions, batch.cu_seqlens)
    correct = (logits_PV.argmax(dim=-1) == batch.labels).sum()
    counted = (batch.labels != IGNORED).sum()
    return torch.stack([summed_cross_entropy(logits_PV, batch.labels).double(), correct.double(), counted.double()])


def summed_cross_entropy(logits_PV: Tensor, labels_P: Tensor) -> Tensor:
    """Cross entropy in fp32, a few rows at a time: 16-bit logits are never copied to fp32 as a whole.

    V = 103168, P = 4096, bf16, CPU: forward and backward peak at 2.5 GB instead of 4.7 GB. F.linear_cross_entropy peaks
    at 0.4 GB, but is opaque to torch.compile and adds a 16-bit loss up in 16 bits: the sum came out 9 % too small.
    """
    rows = max(1, LOGITS_AT_ONCE // logits_PV.shape[-1])
    chunks = zip(logits_PV.split(rows), labels_P.split(rows), strict=True)
    losses = [F.cross_entropy(x.float(), y, ignore_index=IGNORED, reduction="sum") for x, y in chunks]
    return torch.stack(losses).sum()
