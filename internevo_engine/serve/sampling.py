"""serve: which token comes next. Takes logits from decode.py, hands one token to generate.py.

Each answer draws from a generator of its own, so that it doesn't depend on what else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from internevo_engine.errors import UsageError

MAX_TEMPERATURE = 100.0


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; the filters apply in the order of the fields, as in transformers."""

    repetition_penalty: float = 1.0
    """Logits of tokens that are there already, in the prompt or the answer: positive ones are divided by it, negative
    ones multiplied (CTRL, arXiv:1909.05858). 1: no penalty."""
    temperature: float = 0.0
    """Logits are divided by it; 0: always the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability (arXiv:1904.09751); 1: all."""
    seed: int | None = None
    """Equal seeds give equal answers; None: another one every time."""

    def __post_init__(self) -> None:
        """Raises UsageError where a value is out of range."""
        ranges = (
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "above 0"),
            ("temperature", 0 <= self.temperature <= MAX_TEMPERATURE, f"from 0 to {MAX_TEMPERATURE:g}"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, up to 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "from 0 to 2^63 - 1"),
        )
        for name, is_valid, wanted in ranges:
            if not is_valid:
                raise UsageError(f"{name}={getattr(self, name)}: give a number {wanted}")

    def generator(self) -> torch.Generator:
        """On the CPU, so that every device draws the same."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


GREEDY = Sampling()


def choose(logits_V: Tensor, seen: Sequence[int], sampling: Sampling, generator: torch.Generator) -> int:
    """The next token after the tokens `seen`."""
    scores_V = _penalized(logits_V.float().cpu(), seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores_V.argmax())
    probabilities_V = filtered(scores_V, sampling).softmax(0)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def filtered(scores_V: Tensor, sampling: Sampling) -> Tensor:
    """Scores after temperature, top-k and top-p; what is cut off is -inf."""
    scores_V = scores_V / sampling.temperature
    if 0 < sampling.top_k < len(scores_V):
        scores_V = scores_V.masked_fill(scores_V < scores_V.topk(sampling.top_k).values[-1], -inf)
    if sampling.top_p < 1:
        sorted_V, order_V = scores_V.sort(descending=True)
        likelier_V = sorted_V.softmax(0).cumsum(0).roll(1)
        likelier_V[0] = 0.0
        scores_V = scores_V.index_fill(0, order_V[likelier_V >= sampling.top_p], -inf)
    return scores_V


def _penalized(scores_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    if penalty == 1:
        return scores_V
    ids = torch.tensor(sorted({*seen}))
    old = scores_V[ids]
    return scores_V.index_copy(0, ids, torch.where(old < 0, old * penalty, old / penalty))
