"""graph: what `graph.recompute` means. One policy for each layer; graph/partition.py carries it out.

Layers are counted in forward order. Early layers repeat more: what they keep lives longest.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from internevo_engine.graph.joint import CaptureError
from internevo_engine.graph.partition import Policy
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.units import format_bytes


@dataclass(frozen=True)
class MemoryBudget:
    """As little recomputation as lets the kept activations of one micro-batch fit."""

    num_bytes: int


Recompute = Policy | float | MemoryBudget
"""A policy for all layers, a fraction (0 to 1) of the layers that repeat everything, or a memory budget."""

Policies = tuple[Policy, ...]
"""One for each layer."""


def choose(recompute: Recompute, num_layers: int, graph_of: Callable[[Policies], StepGraph]) -> StepGraph:
    """The graph under the policies that `recompute` asks for.

    Raises:
        CaptureError: not even full recomputation fits the budget.
    """
    if isinstance(recompute, MemoryBudget):
        return _within(recompute, num_layers, graph_of)
    if isinstance(recompute, str):
        return graph_of((recompute,) * num_layers)
    return graph_of(_mixed("full", "none", round(recompute * num_layers), num_layers))


def _within(budget: MemoryBudget, num_layers: int, graph_of: Callable[[Policies], StepGraph]) -> StepGraph:
    graph = None
    for policies in rising(num_layers):
        graph = graph_of(policies)
        if graph.kept_bytes <= budget.num_bytes:
            return graph
    assert graph is not None, "there is always a first choice"
    raise CaptureError(
        f"graph.recompute.budget_gb={budget.num_bytes / 1e9:g}: with full recomputation a micro-batch still keeps "
        f"{format_bytes(graph.kept_bytes)} from forward to backward; raise the budget or lower data.micro_batch"
    )


def rising(num_layers: int) -> Iterator[Policies]:
    """From no recomputation to full: selective, layer after layer, then full, layer after layer."""
    yield ("none",) * num_layers
    steps: tuple[tuple[Policy, Policy], ...] = (("selective", "none"), ("full", "selective"))
    for first, rest in steps:
        for num_first in range(1, num_layers + 1):
            yield _mixed(first, rest, num_first, num_layers)


def _mixed(first: Policy, rest: Policy, num_first: int, num_layers: int) -> Policies:
    return (first,) * num_first + (rest,) * (num_layers - num_first)
