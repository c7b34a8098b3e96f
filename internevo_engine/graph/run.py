"""graph: run a StepGraph by hand. The first executor, and the oracle of the others.

It calls the regions one after the other and drops each value after its last reader.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from internevo_engine.errors import UsageError
from internevo_engine.graph.step_graph import Runnable, StepGraph


@dataclass(frozen=True)
class MicroBatchResult:
    """What forward, loss and backward of one micro-batch gave."""

    loss_sum: Tensor
    count: Tensor
    gradients: dict[str, Tensor]
    """By parameter; parameters that the loss doesn't use are missing."""


@torch.no_grad()
def run_micro_batch(
    graph: StepGraph,
    parameters: Mapping[str, Tensor],
    batch: object,
    compiled: Mapping[str, Runnable] | None = None,
) -> MicroBatchResult:
    """Loss and gradients of one micro-batch.

    Args:
        parameters: a tensor for each name in `graph.parameters`.
        compiled: what graph/regions.py made of the regions, by name; without it their graphs run op by op.

    Raises:
        UsageError: the batch is of other shapes or dtypes than the captured one.
    """
    run = compiled or {region.name: region.module.forward for region in graph.regions}
    values = {**graph.constants, **parameters, **batch_values(graph, batch)}
    for call, done in zip(graph.calls, last_reads(graph), strict=True):
        outputs = run[call.region.name](*(values[name] for name in call.inputs))
        values.update(zip(call.outputs, outputs, strict=True))
        for name in done:
            del values[name]
    gradients = {name: values[value] for name, value in graph.gradients.items()}
    return MicroBatchResult(values[graph.loss], values[graph.count], gradients)


def batch_values(graph: StepGraph, batch: object) -> dict[str, Tensor]:
    """The batch's tensors under the names of their values.

    Raises:
        UsageError: the batch is of other shapes or dtypes than the captured one.
    """
    tensors = dict(zip(graph.batch_values, graph.batch.tensors(batch).values(), strict=True))
    for name, tensor in tensors.items():
        value = graph.values[name]
        if (tuple(tensor.shape), tensor.dtype) != (value.shape, value.dtype):
            raise UsageError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, the step was captured for {value.dtype} "
                f"{value.shape}; give every batch one shape (pad; cu_seqlens: models.attention.pad_pieces), or use "
                "graph.mode=hooks"
            )
    return tensors


def last_reads(graph: StepGraph) -> list[list[str]]:
    """For each call the values that nobody needs after it: computed by a call, no result of the step."""
    results = {graph.loss, graph.count, *graph.gradients.values()}
    done: list[list[str]] = [[] for _ in graph.calls]
    for value in graph.values.values():
        if value.producer is not None and value.name not in results:
            done[max(value.consumers, default=value.producer)].append(value.name)
    return done
