"""A stand-in for gloo's collectives in one process: notes each one, by group, as it is posted, and lets it through.

Reduce-scatter is NCCL's there, an all-reduce of which the own slice is kept, since gloo's has no future.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future


@dataclass(frozen=True)
class Collective:
    """What a group was asked for."""

    name: str
    bytes: int
    """Of the longer side."""
    sent: int
    """Bytes that leave this rank: its own slice stays; an all-reduce is a reduce-scatter and an all-gather."""


@dataclass
class Recorder:
    """`by_group` in the order of posting. `hold(group)` keeps that group's first collective back until `release`."""

    by_group: dict[str, list[Collective]] = field(default_factory=lambda: defaultdict(list))
    held_group: str = ""
    released: threading.Event = field(default_factory=threading.Event)
    on_post: Callable[[str, Collective], None] = lambda group, collective: None

    def post(self, name: str, group: Any, longer: Tensor, *tensors: Tensor) -> Any:
        """A work that ends when gloo has done it, and when it was not held back any more."""
        group = dist.ProcessGroup.unbox(group)
        collective = Collective(name, longer.nbytes, sent(name, longer, group.size()))
        is_held = group.group_name == self.held_group and not self.by_group[group.group_name]
        self.by_group[group.group_name].append(collective)
        self.on_post(group.group_name, collective)
        run = RUN[name]
        backend = group._get_backend(torch.device("cpu"))
        if not is_held:
            return run(backend, *tensors).boxed()
        future: Future[None] = Future()
        threading.Thread(target=self._run_later, args=(future, run, backend, tensors), daemon=True).start()
        return _create_work_from_future(future).boxed()

    def _run_later(
        self, future: Future[None], run: Callable[..., Any], backend: Any, tensors: Sequence[Tensor]
    ) -> None:
        if not self.released.wait(timeout=60):
            future.set_exception(RuntimeError("nobody released the collective that was held back"))
            return
        run(backend, *tensors).wait()
        future.set_result(None)


def sent(name: str, longer: Tensor, size: int) -> int:
    if name == "all_reduce":
        return 2 * (size - 1) * ceil(longer.numel() / size) * longer.element_size()
    return longer.nbytes - longer.nbytes // size


def _reduce_scatter(backend: Any, out: Tensor, whole: Tensor) -> Any:
    total = whole.clone()
    backend.allreduce([total]).wait()
    out.copy_(total.view(-1, out.numel())[backend.rank()])
    future: Future[None] = Future()
    future.set_result(None)
    return _create_work_from_future(future)


RUN: dict[str, Callable[..., Any]] = {
    "all_gather": lambda backend, out, own: backend._allgather_base(out, own),
    "all_to_all": lambda backend, out, own: backend.alltoall_base(out, own, [], []),
    "all_reduce": lambda backend, tensor: backend.allreduce([tensor]),
    "reduce_scatter": _reduce_scatter,
}


@contextmanager
def recorded() -> Iterator[Recorder]:
    """Within the block every collective of this process goes through the recorder."""
    recorder = Recorder()

    def all_gather(out: Tensor, own: Tensor, group: Any, *_: Any) -> tuple[Tensor, Any]:
        return out, recorder.post("all_gather", group, out, out, own)

    def reduce_scatter(out: Tensor, whole: Tensor, group: Any, *_: Any) -> tuple[Tensor, Any]:
        return out, recorder.post("reduce_scatter", group, whole, out, whole)

    def all_reduce(tensors: list[Tensor], group: Any, *_: Any) -> tuple[list[Tensor], Any]:
        return tensors, recorder.post("all_reduce", group, tensors[0], tensors[0])

    def all_to_all(out: Tensor, own: Tensor, group: Any, *_: Any) -> Any:
        return recorder.post("all_to_all", group, out, out, own)

    library = torch.library.Library("c10d", "IMPL")
    library.impl("_allgather_base_", all_gather, "CPU", allow_override=True)
    library.impl("_reduce_scatter_base_", reduce_scatter, "CPU", allow_override=True)
    library.impl("allreduce_", all_reduce, "CPU", allow_override=True)
    library.impl("alltoall_base_", all_to_all, "CPU", allow_override=True)
    try:
        yield recorder
    finally:
        library._destroy()
