"""Reading training data: micro-batches from a token folder, against a reader of InternEvo's own files.

    python -m pytest bench/test_data.py [--benchmark-json=FILE]

Both make the same packs of the same documents: tokens, labels, positions and piece borders. The peer does what the
readers of that format do: seek to the offset of a sample, read its line, json.loads. Its packs are made by our code,
so the difference is in the reading alone. One thread each.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path
from time import process_time

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from internevo_engine.data.arrays import Tokens
from internevo_engine.data.formats import TokenFile, write_tokens
from internevo_engine.data.internevo import META, write_internevo
from internevo_engine.data.packing import Layout, MicroBatch, PackedCorpus

SEQ_LEN, MICRO_BATCH, VOCAB = 4096, 4, 100_000
NUM_DOCUMENTS, LONGEST = 4000, 2000

Read = Iterator[MicroBatch]


def documents() -> list[Tokens]:
    draw = np.random.default_rng(0)
    return [draw.integers(3, VOCAB, length) for length in draw.integers(10, LONGEST, NUM_DOCUMENTS)]


def ours(folder: Path) -> Read:
    with write_tokens(folder / "ours", VOCAB, source="bench") as writer:
        for document in documents():
            writer.add(document, num_bytes=1)
    file = TokenFile.open(folder / "ours", VOCAB)
    corpus = PackedCorpus([file], seq_len=SEQ_LEN, micro_batch=MICRO_BATCH, seed=0)
    return (corpus.micro_batch(step, 0, 1) for step in count())


def json_lines(folder: Path) -> Read:
    write_internevo(folder / "peer.bin", documents())
    offsets = np.load(folder / f"peer.bin{META}")[:, 0].tolist()
    order = cycle(np.random.default_rng(1).permutation(offsets).tolist())
    layout = Layout(SEQ_LEN, MICRO_BATCH)
    with (folder / "peer.bin").open("rb") as file:

        def sample() -> Tokens:
            file.seek(next(order))
            return np.array(json.loads(file.readline())["tokens"])

        while True:
            yield layout.pack(_filled(sample, layout.size))


def _filled(sample: Callable[[], Tokens], size: int) -> Iterator[Tokens]:
    """Whole samples, until the pack is full; the last one is cut."""
    while size:
        tokens = sample()[: size + 1]
        size -= len(tokens) - 1
        yield tokens


@pytest.mark.parametrize("make", [ours, json_lines])
def test_read_packs(benchmark: BenchmarkFixture, tmp_path: Path, make: Callable[[Path], Read]) -> None:
    packs = make(tmp_path)
    benchmark.pedantic(lambda: next(packs), rounds=100, warmup_rounds=5)
    assert benchmark.stats is not None
    benchmark.extra_info["Mtokens_per_s"] = round(SEQ_LEN * MICRO_BATCH / benchmark.stats["median"] / 1e6, 1)


def test_we_read_ten_times_as_fast(tmp_path: Path) -> None:
    """CPU seconds of the best of 20 runs each, taken in turns: a busy machine slows both down."""
    readers = (ours(tmp_path), json_lines(tmp_path))
    best = [min(times) for times in zip(*([_seconds(packs) for packs in readers] for _ in range(20)), strict=True)]
    assert best[1] / best[0] >= 10


def _seconds(packs: Read, num_packs: int = 20) -> float:
    begin = process_time()
    for _ in range(num_packs):
        next(packs)
    return process_time() - begin
