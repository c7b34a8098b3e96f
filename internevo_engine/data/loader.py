"""data: micro-batches ahead of time. The last step of data; the loop takes one list of micro-batches a step from it."""

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from internevo_engine.data.packing import Corpus, MicroBatch


class Loader:
    """Hands out the steps of a corpus; each is a list of `grad_accum` micro-batches.

    Rank r's micro-batch m is number m * world + r of the step: with half as many ranks and twice the grad_accum, a step
    has the same micro-batches. A thread packs up to `depth` steps ahead of the one that is taken; what goes wrong in it
    is raised where the step is taken.
    """

    def __init__(self, corpus: Corpus, rank: int, world: int, grad_accum: int, *, depth: int = 2) -> None:
        self._corpus = corpus
        self._numbers = [m * world + rank for m in range(grad_accum)]
        self._per_step = grad_accum * world
        self._depth = depth
        self._ahead: dict[int, Future[list[MicroBatch]]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")

    def take(self, step: int) -> list[MicroBatch]:
        """The micro-batches of any step of the data; soonest those of the steps right behind the last one taken."""
        near = range(step, step + 1 + self._depth)
        for passed in self._ahead.keys() - set(near):
            self._ahead.pop(passed).cancel()
        for wanted in near:
            if wanted not in self._ahead:
                self._ahead[wanted] = self._thread.submit(self._pack_step, wanted)
        return self._ahead.pop(step).result()

    def close(self) -> None:
        """End the thread: the step it packs just now is finished, the others are dropped. May be called twice."""
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _pack_step(self, step: int) -> list[MicroBatch]:
        return [self._corpus.micro_batch(step, number, self._per_step) for number in self._numbers]
