"""loop: held-out loss, and bits per byte, which does not depend on the tokenizer."""

from dataclasses import dataclass
from math import log

from internevo_engine.data.packing import MicroBatch, PackedCorpus
from internevo_engine.engine import Engine


@dataclass(frozen=True)
class Validation:
    """One line of valid.jsonl."""

    step: int
    loss: float
    """Mean over held-out tokens, in nats."""
    bits_per_byte: float | None
    """Bits that the model needs for one byte of the text; None where the corpus doesn't know its text's bytes."""
    tokens: int


def validate(engine: Engine[MicroBatch], corpus: PackedCorpus, *, rank: int, world: int) -> Validation:
    """Every held-out token once, the packs dealt out over the ranks."""
    loss_sum, tokens = engine.evaluate(corpus.evaluation_packs(rank, world))
    bits = loss_sum / log(2) / corpus.num_bytes if corpus.num_bytes else None
    return Validation(engine.num_steps_done, loss_sum / tokens, bits, int(tokens))
