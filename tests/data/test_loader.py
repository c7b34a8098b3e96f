"""The loader deals micro-batches to ranks, stays ahead, and hides no error."""

import threading
from collections.abc import Iterable

import pytest
import torch

from internevo_engine.data.loader import Loader
from internevo_engine.data.packing import MicroBatch


class Numbered:
    """A corpus whose micro-batch is its global number; records what was packed."""

    def __init__(self, *, fails_at: int | None = None, waits_at: int | None = None) -> None:
        self.packed: list[int] = []
        self.fails_at = fails_at
        self.waits_at = waits_at
        self.waits = threading.Event()
        self.go_on = threading.Event()
        self.progress = threading.Condition()

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        if step == self.fails_at:
            raise OSError("disk is gone")
        if step == self.waits_at:
            self.waits.set()
            assert self.go_on.wait(timeout=10)
        with self.progress:
            self.packed.append(step * per_step + number)
            self.progress.notify_all()
        return MicroBatch(*[torch.tensor([self.packed[-1]])] * 4)


def numbers(loader: Loader, steps: Iterable[int]) -> list[list[int]]:
    with loader:
        return [[int(batch.tokens) for batch in loader.take(step)] for step in steps]


@pytest.mark.parametrize(("world", "grad_accum"), [(1, 4), (2, 2), (4, 1)])
def test_ranks_share_the_same_step(world: int, grad_accum: int) -> None:
    ranks = [numbers(Loader(Numbered(), rank, world, grad_accum), range(5, 8)) for rank in range(world)]
    for step in range(3):
        taken = [ranks[number % world][step][number // world] for number in range(4)]
        assert taken == [(5 + step) * 4 + number for number in range(4)]


def test_any_step_may_be_taken_and_none_is_packed_twice_on_the_way_forward() -> None:
    corpus = Numbered()
    assert numbers(Loader(corpus, 0, 1, 1), [0, 1, 3, 4, 2]) == [[0], [1], [3], [4], [2]]
    assert sorted(corpus.packed[: corpus.packed.index(4) + 1]) == [0, 1, 2, 3, 4]


def test_thread_stays_depth_steps_ahead_and_no_more() -> None:
    corpus = Numbered()
    with Loader(corpus, 0, 1, 1, depth=3) as loader:
        loader.take(0)
        with corpus.progress:
            assert corpus.progress.wait_for(lambda: len(corpus.packed) == 4, timeout=10)
            assert not corpus.progress.wait_for(lambda: len(corpus.packed) > 4, timeout=0.05)


def test_error_in_the_thread_is_raised_where_the_step_is_taken() -> None:
    with Loader(Numbered(fails_at=2), 0, 1, 1) as loader:
        assert [int(loader.take(step)[0].tokens) for step in range(2)] == [0, 1]
        with pytest.raises(OSError, match="disk is gone"):
            loader.take(2)


def test_close_ends_the_thread_and_drops_what_waits() -> None:
    corpus = Numbered(waits_at=1)
    loader = Loader(corpus, 0, 1, 1, depth=3)
    loader.take(0)
    assert corpus.waits.wait(timeout=10)
    closing = threading.Thread(target=loader.close)
    closing.start()
    closing.join(timeout=0.3)
    assert closing.is_alive()
    corpus.go_on.set()
    closing.join(timeout=10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]
    assert corpus.packed == [0, 1]
    loader.close()
