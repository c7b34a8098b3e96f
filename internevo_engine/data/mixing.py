"""data: how data.weights mixes the entries of data.train, and a table of it. Between order and packing; no torch."""

from collections.abc import Sequence

from internevo_engine.config.schema import Config
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.order import BLOCK, Mixture
from internevo_engine.data.streams import Stream


def split_weights(weights: Sequence[float], entries: Sequence[Sequence[TokenFile]]) -> list[float]:
    """A weight for each file: where an entry has several types, they share its weight by their tokens."""
    shares: list[float] = []
    for weight, entry in zip(weights, entries, strict=True):
        tokens = [file.manifest.num_tokens for file in entry]
        shares += [weight * num_tokens / max(sum(tokens), 1) for num_tokens in tokens]
    return shares


def plan_of(config: Config, entries: Sequence[Sequence[TokenFile]], *, num_sequences: int, step: int) -> str:
    """What each source gives to the run's first `num_sequences` sequences, those of `step` steps: a table.

    Raises:
        DataError: a weight is too small, or a source has no tokens.
    """
    files, seq_len, seed = [file for entry in entries for file in entry], config.data.seq_len, config.run.seed
    streams = [Stream([file], seq_len=seq_len, seed=seed) for file in files]
    weights = config.data.weights
    by_size = [float(stream.num_positions) for stream in streams]
    mixture = Mixture.of(split_weights(weights, entries) if weights else by_size, seed)
    total, taken = sum(mixture.counts), mixture.cursor(num_sequences)
    rows = [
        f"  {count / total:7.2%} {stream.num_positions:>18,} {n:>14,} {n / stream.num_sequences:>8.2f}  {file.path}"
        for count, stream, n, file in zip(mixture.counts, streams, taken, files, strict=True)
    ]
    how = f"by data.weights, exactly in every {BLOCK:,} sequences" if weights else "by size, as data.weights is null"
    return "\n".join(
        [
            f"{num_sequences:,} sequences of {seq_len:,} tokens in {step:,} steps; shares {how}",
            f"  {'share':>7} {'tokens':>18} {'sequences':>14} {'epochs':>8}  source",
            *rows,
        ]
    )
