"""data: micro-batches ahead of time. The last step of data; the loop takes one list of micro-batches a step from it."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType

from internevo_engine.data.packing import Corpus, MicroBatch


class Loader:
    """Iterates over `num_steps` steps from `first_step` on; each is a list of `grad_accum` micro-batches.

    Rank r's micro-batch m is number m * world + r of the step: with half as many ranks and twice the grad_accum, a step
    has the same micro-batches. A thread packs up to `depth` steps ahead; what goes wrong in it is raised where
    the step is taken.
    """

    def __init__(
        self, corpus: Corpus, rank: int, world: int, grad_accum: int, first_step: int, num_steps: int, *, depth: int = 2
    ) -> None:
        self._corpus = corpus
        self._numbers = [m * world + rank for m in range(grad_accum)]
        self._per_step = grad_accum * world
        self._steps = range(first_step, first_step + num_steps)
        self._depth = depth
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        steps = iter(self._steps)
        ahead = deque(self._submit(step) for step in islice(steps, self._depth))
        while ahead:
            micro_batches = ahead.popleft().result()
            ahead.extend(self._submit(step) for step in islice(steps, 1))
            yield micro_batches

    def close(self) -> None:
        """End the thread: the step it packs just now is finished, the others are dropped. May be called twice."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, step: int) -> "Future[list[MicroBatch]]":
        return self._thread.submit(self._pack_step, step)

    def _pack_step(self, step: int) -> list[MicroBatch]:
        return [self._corpus.micro_batch(step, number, self._per_step) for number in self._numbers]
