"""loop: held-out loss and accuracy, of all text and of each type of it, and bits per byte, which know no tokenizer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import log
from typing import Any

import torch
from torch import Tensor

from internevo_engine.data.packing import MicroBatch, PackedCorpus
from internevo_engine.engine import Engine
from internevo_engine.errors import DataError
from internevo_engine.graph.module import evaluating
from internevo_engine.models.loss import token_scores
from internevo_engine.runtime.communicator import Communicator


@dataclass(frozen=True)
class Score:
    """What the model is worth on some held-out text."""

    loss: float
    """Mean over counted tokens, in nats."""
    accuracy: float
    """Share of counted tokens that the model finds most likely."""
    bits_per_byte: float | None
    """Bits that the model needs for one byte of the text; None where the corpus doesn't know its text's bytes."""
    tokens: int
    """Counted ones."""


@dataclass(frozen=True)
class Validation:
    """One line of valid.jsonl."""

    step: int
    overall: Score
    types: Mapping[str, Score]
    """By type of the data (data/sources.py)."""

    def record(self) -> dict[str, Any]:
        """Flat for the whole, and `types` by name."""
        return {"step": self.step, **asdict(self.overall), "types": {n: asdict(s) for n, s in self.types.items()}}


@torch.no_grad()
def validate(engine: Engine[MicroBatch], corpora: Mapping[str, PackedCorpus], communicator: Communicator) -> Validation:
    """Every held-out token once, the packs of each type dealt out over the ranks.

    Raises:
        DataError: not one of them is counted.
    """
    with engine.whole_parameters(), evaluating(engine.model):
        sums = torch.stack([_sums(engine, corpus, communicator) for corpus in corpora.values()])
    by_type = communicator.sum(sums)
    if not by_type[:, 2].any():
        raise DataError("data.valid: no token is counted; check its loss mask, or set data.valid=null")
    bytes_of = {kind: corpus.num_bytes for kind, corpus in corpora.items()}
    types = {kind: score_of(row, bytes_of[kind]) for kind, row in zip(corpora, by_type, strict=True)}
    num_bytes = sum(bytes_of.values()) if all(bytes_of.values()) else 0
    return Validation(engine.num_steps_done, score_of(by_type.sum(0), num_bytes), types)


def _sums(engine: Engine[MicroBatch], corpus: PackedCorpus, communicator: Communicator) -> Tensor:
    """This rank's part of token_scores, [3]."""
    sums = torch.zeros(3, dtype=torch.float64, device=communicator.device)
    for batch in corpus.evaluation_packs(communicator.rank, communicator.world):
        sums += token_scores(engine.model, batch.to(communicator.device))
    return sums


def score_of(sums: Tensor, num_bytes: int) -> Score:
    """From token_scores, [3], added up over some text of `num_bytes` bytes (0: unknown)."""
    loss_sum, correct, tokens = sums.tolist()
    bits = loss_sum / log(2) / num_bytes if num_bytes else None
    return Score(loss_sum / max(tokens, 1), correct / max(tokens, 1), bits, int(tokens))
