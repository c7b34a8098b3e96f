"""Packs hold every token once, restart where they must, and depend on nothing but (seed, step, number)."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from internevo_engine.data.formats import TokenFile, write_tokens
from internevo_engine.data.order import BLOCK, shuffled
from internevo_engine.data.packing import IGNORED, Corpus, MicroBatch, PackedCorpus, RandomCorpus
from internevo_engine.errors import DataError

BOS, EOS = 1, 2


def make_documents(count: int, longest: int, first_token: int = 3) -> list[list[int]]:
    """Documents of different lengths in which no token but bos and eos occurs twice."""
    lengths = np.random.default_rng(0).integers(0, longest, count)
    ends = first_token + np.cumsum(lengths)
    return [[BOS, *range(end - length, end), EOS] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]


def write(path: Path, documents: list[list[int]]) -> TokenFile:
    with write_tokens(path, 100_000, source="test") as writer:
        for document in documents:
            writer.add(np.array(document), num_bytes=len(document))
    return TokenFile.open(path, 100_000)


def make_corpus(
    path: Path, documents: list[list[int]], *, seq_len: int = 16, micro_batch: int = 4, seed: int = 7
) -> PackedCorpus:
    """Two token files, so that documents are found in both."""
    files = [write(path / "a", documents[: len(documents) // 2]), write(path / "b", documents[len(documents) // 2 :])]
    return PackedCorpus(files, seq_len=seq_len, micro_batch=micro_batch, seed=seed)


def pairs(micro_batches: list[MicroBatch]) -> list[tuple[int, int]]:
    """(token, label) of every counted position."""
    tokens, labels = (torch.cat([getattr(b, name) for b in micro_batches]).tolist() for name in ("tokens", "labels"))
    return [(token, label) for token, label in zip(tokens, labels, strict=True) if label != IGNORED]


def pairs_of(documents: list[list[int]]) -> list[tuple[int, int]]:
    return [pair for document in documents for pair in pairwise(document)]


def same(a: MicroBatch, b: MicroBatch) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("tokens", "labels", "positions", "cu_seqlens")
    )


def boundaries(batch: MicroBatch) -> torch.Tensor:
    """cu_seqlens without its padding."""
    return batch.cu_seqlens.unique()


def check_shape(batch: MicroBatch, seq_len: int, micro_batch: int) -> None:
    assert len(batch.cu_seqlens) == seq_len * micro_batch + 1
    lengths = boundaries(batch).diff()
    assert (batch.tokens.dtype, batch.labels.dtype, batch.positions.dtype) == (torch.int64,) * 3
    assert batch.cu_seqlens.dtype == torch.int32
    assert len(batch.tokens) == len(batch.labels) == len(batch.positions) == seq_len * micro_batch
    assert (batch.cu_seqlens[0], batch.cu_seqlens[-1]) == (0, seq_len * micro_batch)
    assert lengths.min() > 0
    assert lengths.max() <= seq_len
    assert torch.equal(batch.positions, torch.cat([torch.arange(length) for length in lengths.tolist()]))


def test_epoch_holds_every_pair_once_but_for_a_tail_that_moves(tmp_path: Path) -> None:
    documents = make_documents(100, 60)
    corpus = make_corpus(tmp_path, documents, micro_batch=1)
    expected = Counter(pairs_of(documents))
    num_sequences, tail = divmod(expected.total(), 16)
    assert corpus.num_positions == expected.total()
    assert tail
    left_out = []
    for epoch in range(3):
        packs = [corpus.micro_batch(epoch * num_sequences + pack, 0, 1) for pack in range(num_sequences)]
        for pack in packs:
            check_shape(pack, 16, 1)
        assert not Counter(pairs(packs)) - expected
        left_out.append(expected - Counter(pairs(packs)))
    assert [missing.total() for missing in left_out] == [tail] * 3
    assert left_out[0] != left_out[1]


def test_a_micro_batch_mixes_sequences_from_all_over_the_corpus(tmp_path: Path) -> None:
    documents = [[BOS, *range(1000 * i, 1000 * i + 159), EOS] for i in range(1, 65)]
    corpus = make_corpus(tmp_path, documents, micro_batch=16)
    files = {token // 1000 for token in corpus.micro_batch(0, 0, 1).tokens.tolist() if token > EOS}
    assert len(files) > 10


@pytest.mark.parametrize("count", [1, 2, 3, 17, 64, 1000])
def test_shuffled_is_a_permutation_that_depends_on_its_key(count: int) -> None:
    orders = [[shuffled(index, count, 7, epoch) for index in range(count)] for epoch in range(2)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 10:
        assert orders[0] != orders[1]
        assert np.corrcoef(orders[0], range(count))[0, 1] < 0.6


def test_pieces_end_at_documents_sequences_and_packs(tmp_path: Path) -> None:
    corpus = PackedCorpus([write(tmp_path / "t", [[BOS, *range(10, 20), EOS]])], seq_len=4, micro_batch=2, seed=0)
    first, rest = corpus.evaluation_packs()
    assert first.tokens.tolist() == [BOS, 10, 11, 12, 13, 14, 15, 16]
    assert first.labels.tolist() == [10, 11, 12, 13, 14, 15, 16, 17]
    assert first.positions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert boundaries(first).tolist() == [0, 4, 8]
    assert rest.tokens.tolist() == [17, 18, 19, 0, 0, 0, 0, 0]
    assert rest.labels.tolist() == [18, 19, EOS, *[IGNORED] * 5]
    assert rest.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert boundaries(rest).tolist() == [0, 3, 7, 8]


def test_pieces_begin_exactly_where_a_slow_walk_says(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, make_documents(100, 60))
    for step in range(20):
        batch = corpus.micro_batch(step, 0, 1)
        labels, begins = batch.labels.tolist(), [0]
        begins += [i for i in range(1, 64) if labels[i - 1] == EOS or i % 16 == 0]
        assert boundaries(batch).tolist() == [*begins, 64]


def test_micro_batch_is_pure_and_independent_of_the_world(tmp_path: Path) -> None:
    documents = make_documents(100, 60)
    corpus, other = make_corpus(tmp_path / "a", documents), make_corpus(tmp_path / "b", documents)
    straight = [corpus.micro_batch(0, number, 80) for number in range(80)]
    for step, number in ((9, 3), (0, 0), (4, 1), (19, 3), (9, 3)):
        assert same(other.micro_batch(step, number, 4), straight[step * 4 + number])
    assert not same(make_corpus(tmp_path / "c", documents, seed=8).micro_batch(0, 0, 4), straight[0])


def test_order_is_the_same_on_every_machine(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, [[BOS, 10 + i, EOS] for i in range(8)], seq_len=2, micro_batch=8)
    orders = [corpus.micro_batch(step, 0, 1).tokens.tolist() for step in range(2)]
    assert orders == [
        [17, 1, 14, 1, 13, 1, 10, 1, 12, 1, 11, 1, 16, 1, 15, 1],
        [12, 1, 16, 1, 15, 1, 11, 1, 10, 1, 13, 1, 17, 1, 14, 1],
    ]


@pytest.mark.parametrize("num_documents", [1, 3])
def test_tiny_corpus_repeats_itself_within_a_pack(tmp_path: Path, num_documents: int) -> None:
    documents = [[BOS, 10 + i, 20 + i, EOS] for i in range(num_documents)]
    corpus = PackedCorpus([write(tmp_path / "t", documents)], seq_len=16, micro_batch=4, seed=7)
    for step in range(3):
        pack = corpus.micro_batch(step, 0, 1)
        check_shape(pack, 16, 4)
        counts = Counter(pairs([pack]))
        assert set(counts) == set(pairs_of(documents))
        assert max(counts.values()) - min(counts.values()) <= 4


def test_only_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokens"):
        PackedCorpus([write(tmp_path / "t", [])], seq_len=4, micro_batch=1, seed=0)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_counts_every_position_once_in_order(tmp_path: Path, world: int) -> None:
    documents = make_documents(100, 60)
    corpus = make_corpus(tmp_path, documents)
    by_rank = [list(corpus.evaluation_packs(rank, world)) for rank in range(world)]
    packs = [by_rank[number % world][number // world] for number in range(corpus.num_evaluation_packs)]
    for pack in packs:
        check_shape(pack, 16, 4)
    assert pairs(packs) == pairs_of(documents)
    assert sum(map(len, by_rank)) == corpus.num_evaluation_packs
    assert corpus.num_bytes == sum(map(len, documents))


def test_random_corpus_has_full_pieces_and_is_pure() -> None:
    corpus: Corpus = RandomCorpus(50, seq_len=16, micro_batch=4, seed=7)
    batch = corpus.micro_batch(3, 1, 2)
    check_shape(batch, 16, 4)
    assert boundaries(batch).tolist() == [0, 16, 32, 48, 64]
    assert torch.equal(batch.labels[:-1], batch.tokens[1:])
    assert batch.tokens.min() >= 0
    assert batch.tokens.max() < 50
    assert same(batch, RandomCorpus(50, seq_len=16, micro_batch=4, seed=7).micro_batch(0, 7, 8))
    assert not same(batch, corpus.micro_batch(3, 0, 2))


def test_micro_batch_moves_whole() -> None:
    batch = RandomCorpus(50, seq_len=4, micro_batch=1, seed=0).micro_batch(0, 0, 1)
    assert same(batch.to(torch.device("cpu")), batch)
    assert batch.to(torch.device("meta")).tokens.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_micro_batch_moves_to_cuda() -> None:
    batch = RandomCorpus(50, seq_len=4, micro_batch=1, seed=0).micro_batch(0, 0, 1)
    assert same(batch.to(torch.device("cuda")).to(torch.device("cpu")), batch)


def test_tokens_that_are_not_counted_are_read_and_no_label(tmp_path: Path) -> None:
    with write_tokens(tmp_path / "t", None, source="test", masked=True) as writer:
        writer.add(np.array([~BOS, ~10, 11, ~0, 12, EOS]), 1)
    (pack,) = PackedCorpus([TokenFile.open(tmp_path / "t", 20)], seq_len=8, micro_batch=1, seed=0).evaluation_packs()
    assert pack.tokens.tolist() == [BOS, 10, 11, 0, 12, 0, 0, 0]
    assert pack.labels.tolist() == [IGNORED, 11, IGNORED, 12, EOS, IGNORED, IGNORED, IGNORED]


def test_pack_sample_into_one_restarts_at_sequences_only(tmp_path: Path) -> None:
    files = [write(tmp_path / "t", make_documents(100, 60))]
    shape = {"seq_len": 16, "micro_batch": 4, "seed": 7}
    apart, together = (PackedCorpus(files, **shape, pack_sample_into_one=one) for one in (False, True))
    num_pieces = 0
    for step in range(5):
        a, b = apart.micro_batch(step, 0, 1), together.micro_batch(step, 0, 1)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.labels, b.labels)
        check_shape(b, 16, 4)
        assert boundaries(b).tolist() == [0, 16, 32, 48, 64]
        num_pieces += len(boundaries(a)) - 1
    assert num_pieces > 5 * 4


def test_weights_mix_sequences_and_know_no_world(tmp_path: Path) -> None:
    files = [
        write(tmp_path / name, make_documents(40, 60, first))
        for name, first in (("a", 3), ("b", 20_000), ("c", 50_000))
    ]
    shape = {"seq_len": 16, "micro_batch": 4, "seed": 7, "weights": [1.0, 2.0, 5.0]}
    corpus, other = PackedCorpus(files, **shape), PackedCorpus(files, **shape)
    straight = [corpus.micro_batch(0, number, BLOCK) for number in range(BLOCK // 4)]
    borders = torch.tensor([20_000, 50_000])
    largest = torch.cat([pack.tokens.view(4, 16).amax(1) for pack in straight])
    assert torch.bucketize(largest, borders, right=True).bincount().tolist() == [BLOCK // 8, BLOCK // 4, BLOCK * 5 // 8]
    for step, number in ((9, 3), (0, 0), (4, 1)):
        assert same(other.micro_batch(step, number, 4), straight[step * 4 + number])
    known = {pair for file in files for pair in pairs_of([document.tolist() for document in file.documents()])}
    for pack in straight[:20]:
        check_shape(pack, 16, 4)
        assert set(pairs([pack])) <= known
