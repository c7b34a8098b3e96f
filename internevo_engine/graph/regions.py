"""graph: compile the regions of a StepGraph, each once, however many layers call it.

Called by the runtime before the first step, after capture has returned: inside the trace Inductor would report its
strides into it. Hands on callables by the region's name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import Synchronized
from threading import Thread
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from internevo_engine.graph import compat
from internevo_engine.graph.extract import returned
from internevo_engine.graph.step_graph import Region, Runnable, StepGraph

Compiler = Literal["inductor", "eager"]

INDUCTOR_SETTINGS = {
    "reorder_for_compute_comm_overlap": False,
    "reorder_for_peak_memory": False,
    "bucket_all_gathers_fx": "none",
    "bucket_reduce_scatters_fx": "none",
    "bucket_all_reduces_fx": "none",
}
"""Inductor's own overlap passes stay off: a region holds no communication, and two schedulers fight."""


def compile_regions(graph: StepGraph, compiler: Compiler) -> dict[str, Runnable]:
    """Something that runs for each region, by its name. Inductor takes seconds to minutes, or finds it in its cache."""
    return {region.name: _COMPILERS[compiler](region) for region in graph.regions}


@contextmanager
def asking_machine(compiler: Compiler) -> Iterator[None]:
    """Beside the block, find out what Inductor wants to know once: a second, spent mostly waiting."""
    thread = Thread(target=_ASK[compiler])
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _ask_for_inductor() -> None:
    """Which vector instructions the C++ compiler knows, and a hash of torch's sources, by which its cache is keyed.

    That it knows those of this CPU at all is taken for granted, and the trial compilation left out.
    """
    with compat.inductor_config.patch({"cpp.vec_isa_ok": True}):
        compat.pick_vec_isa()
    compat.torch_key()


_ASK: Mapping[Compiler, Callable[[], object]] = {"eager": lambda: None, "inductor": _ask_for_inductor}


def compile_ahead(regions: Sequence[Region], num_processes: int) -> int:
    """Fill Inductor's cache, so that compile_regions finds these regions there, in this rank and in others of its host.

    Forked processes take them one by one, the largest first: alone, Python would wait for the C++ compiler and the C++
    compiler for Python. What fails in one of them goes unheard; it fails again in compile_regions.

    Args:
        num_processes: 1: no fork, all in this process.

    Returns:
        How many of them the cache had already.
    """
    largest_first = sorted(regions, key=lambda region: -len(region.module.graph.nodes))
    if num_processes == 1:
        return sum(_was_cached(region) for region in largest_first)
    fork = get_context("fork")
    num_cached = fork.Value("i")
    todo: SimpleQueue[int] = fork.SimpleQueue()
    for index in [*range(len(regions)), *[-1] * num_processes]:
        todo.put(index)
    processes = [
        fork.Process(target=_compile_from, args=(todo, largest_first, num_cached)) for _ in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return num_cached.value


def _compile_from(todo: "SimpleQueue[int]", regions: Sequence[Region], num_cached: "Synchronized[int]") -> None:
    """The life of a forked process. It has none of its parent's threads: compiling computes nothing on fake tensors,
    and starts one C++ compiler at a time, without a pool. (The number of threads is compiled in, and stays.)"""
    with redirect_stderr(StringIO()), compat.inductor_config.patch(compile_threads=1):
        while (index := todo.get()) >= 0:
            was_cached = _was_cached(regions[index])
            with num_cached:
                num_cached.value += was_cached


def _was_cached(region: Region) -> bool:
    """Compile a region; whether Inductor found it in its cache."""
    hits = compat.counters["inductor"]["fxgraph_cache_hit"]
    _inductor(region)
    return compat.counters["inductor"]["fxgraph_cache_hit"] > hits


def _eager(region: Region) -> Runnable:
    """Op by op, with the bits of a model that runs without compilation."""
    return region.module.forward


def _inductor(region: Region) -> Runnable:
    example = _example(region.module)
    mode = compat.detect_fake_mode(example)
    assert mode is not None, "regions are traced on fake tensors"
    with torch.no_grad(), mode:
        lowered = _lowered(region.module, example)
    with torch.no_grad(), compat.tracing(compat.TracingContext(mode)), compat.inductor_config.patch(INDUCTOR_SETTINGS):
        boxed = compat.compile_fx_inner(lowered, example)
    return lambda *inputs: tuple(boxed([*inputs]))


_COMPILERS: Mapping[Compiler, Callable[[Region], Runnable]] = {"eager": _eager, "inductor": _inductor}


def _lowered(module: GraphModule, example: list[Tensor]) -> GraphModule:
    """The same graph in the ops that Inductor knows, traced again with its decompositions.

    All outputs count as visible to the user, and keep their strides: else Inductor may pad or reorder one that another
    region takes as traced, and so may a decomposition (that of cat, where one of two tensors is empty).
    """
    strides = [node.meta["val"].stride() for node in returned(module)]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = zip(Interpreter(module).run(*inputs), strides, strict=True)
        return tuple(
            out if out.stride() == stride else compat.force_stride_order(out, stride) for out, stride in outputs
        )

    lowered = compat.make_fx(run, compat.select_decomp_table())(*example)
    lowered.graph.output_node().meta["user_visible_output_idxs"] = list(range(len(returned(lowered))))
    return lowered


def _example(module: GraphModule) -> list[Tensor]:
    return [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
