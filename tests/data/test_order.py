"""A mixture is a pure function of (seed, number) that keeps its shares and leaves no sequence out."""

from collections import Counter

import pytest

from internevo_engine.data.order import BLOCK, Mixture
from internevo_engine.errors import DataError


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [0.7, 0.2, 0.1], [1e9, 1e9, 3e9], [0.3] * 7])
def test_blocks_keep_the_shares_and_sources_their_order(weights: list[float]) -> None:
    mixture = Mixture.of(weights, seed=3)
    total = sum(mixture.counts)
    assert total == (1 if len(weights) == 1 else BLOCK)
    places = [mixture.locate(number) for number in range(2 * BLOCK)]
    for source, (count, weight) in enumerate(zip(mixture.counts, weights, strict=True)):
        assert abs(count - total * weight / sum(weights)) < 1
        assert [k for s, k in places[: 2 * total] if s == source] == list(range(2 * count))


def test_sources_are_mixed_within_a_block() -> None:
    mixture = Mixture.of([1.0, 3.0], seed=3)
    for begin in range(0, BLOCK, 256):
        counts = Counter(mixture.locate(number)[0] for number in range(begin, begin + 256))
        assert 30 < counts[0] < 100


def test_another_seed_is_another_mixture() -> None:
    assert Mixture.of([1.0, 1.0], 0).pattern != Mixture.of([1.0, 1.0], 1).pattern


@pytest.mark.parametrize("number", [0, 1, 700, BLOCK, BLOCK + 5])
def test_cursor_counts_what_was_given(number: int) -> None:
    mixture = Mixture.of([0.6, 0.3, 0.1], seed=5)
    counts = Counter(mixture.locate(earlier)[0] for earlier in range(number))
    assert mixture.cursor(number) == tuple(counts[source] for source in range(3))


def test_a_weight_too_small_to_be_heard_is_refused() -> None:
    with pytest.raises(DataError, match=r"weight 1e-06 of \[1\.0, 1e-06\] is less than 1/4096"):
        Mixture.of([1.0, 1e-6], seed=0)
