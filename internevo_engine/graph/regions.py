"""graph: compile the regions of a StepGraph, each once, however many layers call it.

Called by the runtime before the first step, after capture has returned: inside the trace Inductor would report its
strides into it. Hands on callables by the region's name.
"""

import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter

from internevo_engine.graph import compat
from internevo_engine.graph.extract import returned
from internevo_engine.graph.step_graph import Region, Runnable, StepGraph
from internevo_engine.units import format_seconds

Compiler = Literal["inductor", "eager"]

OURS_TO_SCHEDULE = {
    "reorder_for_compute_comm_overlap": False,
    "reorder_for_peak_memory": False,
    "bucket_all_gathers_fx": "none",
    "bucket_reduce_scatters_fx": "none",
    "bucket_all_reduces_fx": "none",
}
"""Inductor's own overlap passes stay off: a region holds no communication, and two schedulers fight."""


def compile_regions(graph: StepGraph, compiler: Compiler, report: Callable[[str], None]) -> dict[str, Runnable]:
    """Something that runs for each region, by its name.

    Args:
        report: gets a line before and one after; compiling takes seconds to minutes, the next start finds it in
            Inductor's cache folder.
    """
    started, regions = time.perf_counter(), graph.regions
    report(f"compiling {len(regions)} regions for {len(graph.calls)} calls: {compiler}")
    hits = _cache_hits()
    runnables = {region.name: _COMPILERS[compiler](region) for region in regions}
    seconds = format_seconds(time.perf_counter() - started)
    report(f"compiled {len(regions)} regions in {seconds}, {_cache_hits() - hits} of them from the cache")
    return runnables


def _cache_hits() -> int:
    """Regions that Inductor has found in its cache since the process began."""
    return compat.counters["inductor"]["fxgraph_cache_hit"]


def _eager(region: Region) -> Runnable:
    """Op by op, with the bits of a model that runs without compilation."""
    return region.module.forward


def _inductor(region: Region) -> Runnable:
    example = _example(region.module)
    mode = compat.detect_fake_mode(example)
    assert mode is not None, "regions are traced on fake tensors"
    with torch.no_grad(), mode:
        lowered = _lowered(region.module, example)
    with torch.no_grad(), compat.tracing(compat.TracingContext(mode)), compat.inductor_config.patch(OURS_TO_SCHEDULE):
        boxed = compat.compile_fx_inner(lowered, example)
    return lambda *inputs: tuple(boxed([*inputs]))


_COMPILERS: Mapping[Compiler, Callable[[Region], Runnable]] = {"eager": _eager, "inductor": _inductor}


def _lowered(module: GraphModule, example: list[Tensor]) -> GraphModule:
    """The same graph in the ops that Inductor knows, traced again with its decompositions.

    All outputs count as visible to the user: else Inductor may pad or reorder one that another region takes as traced.
    """
    lowered = compat.make_fx(Interpreter(module).run, compat.select_decomp_table())(*example)
    lowered.graph.output_node().meta["user_visible_output_idxs"] = list(range(len(returned(lowered))))
    return lowered


def _example(module: GraphModule) -> list[Tensor]:
    return [node.meta["val"] for node in module.graph.find_nodes(op="placeholder")]
