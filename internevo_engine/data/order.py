"""data: which sequence comes when, as pure functions of (seed, number). Between the files and packing; no torch.

Nothing is kept but the seed, so nothing has to be saved to resume, and the world size decides only who takes what.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from internevo_engine.errors import DataError

BLOCK = 4096
"""Sequences over which a mixture keeps its shares exactly; a share is a multiple of 1 / BLOCK."""


def draw(*key: int) -> int:
    """64 pseudo-random bits, a pure function of the key, the same on every machine."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def shuffled(index: int, count: int, *key: int) -> int:
    """Where a pseudo-random permutation of range(count) takes `index`; no table, whatever the count.

    A Feistel network on the next power of four, walked along its cycle until it is back in range (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002, method 2).
    """
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(4):
            left, right = right, left ^ (draw(*key, round_number, right) & mask)
        index = left << half | right
        if index < count:
            return index


@dataclass(frozen=True)
class Mixture:
    """Deals the sequences of a run to sources, by a pattern of BLOCK that repeats; a source gives its own in order."""

    counts: tuple[int, ...]
    """Sequences of each source in a block."""
    pattern: tuple[tuple[int, int], ...]
    """[BLOCK]: the source, and which of its sequences in the block that is; or of length 1, for a single source."""

    @classmethod
    def of(cls, weights: Sequence[float], seed: int) -> "Mixture":
        """Shares in proportion to `weights`, which are positive; rounded to 1 / BLOCK by largest remainders.

        Raises:
            DataError: a weight is too small to be heard at all.
        """
        if len(weights) == 1:
            return cls((1,), ((0, 0),))
        counts = _shares(weights)
        owners = [source for source, count in enumerate(counts) for _ in range(count)]
        given = [0] * len(counts)
        pattern: list[tuple[int, int]] = []
        for slot in range(BLOCK):
            source = owners[shuffled(slot, BLOCK, seed, len(counts))]
            pattern.append((source, given[source]))
            given[source] += 1
        return cls(tuple(counts), tuple(pattern))

    def locate(self, number: int) -> tuple[int, int]:
        """The source of the run's sequence `number`, and which of the source's sequences that is, both from 0."""
        block, slot = divmod(number, len(self.pattern))
        source, nth = self.pattern[slot]
        return source, block * self.counts[source] + nth

    def cursor(self, number: int) -> tuple[int, ...]:
        """How many sequences each source has given before the run's sequence `number`."""
        block, slot = divmod(number, len(self.pattern))
        begun = [source for source, _ in self.pattern[:slot]]
        return tuple(block * count + begun.count(source) for source, count in enumerate(self.counts))


def _shares(weights: Sequence[float]) -> list[int]:
    exact = [BLOCK * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda source: counts[source] - exact[source])
    for source in by_remainder[: BLOCK - sum(counts)]:
        counts[source] += 1
    if 0 in counts:
        raise DataError(
            f"weight {weights[counts.index(0)]:g} of {list(weights)} is less than 1/{BLOCK} of all; "
            f"raise it or leave its source out"
        )
    return counts
