"""graph: split a layer's joint graph into a forward and a backward region.

Called by graph/capture.py, once for each kind of layer and policy. The forward hands what it keeps to the backward,
where the rest is computed again from it and from the layer's inputs.

Nothing computed from parameters alone is kept, be it a transpose or a cast: the backward takes the parameter again.
That is what lets a sharded parameter go after the forward.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils.flop_counter import flop_registry

from internevo_engine.graph.compat import min_cut_rematerialization_partition
from internevo_engine.graph.extract import Piece, extract, is_result, is_tensor, returned, viewed
from internevo_engine.graph.joint import JointGraph

Policy = Literal["none", "selective", "full"]
"""What a layer's backward repeats of the forward: nothing that costs, all but matrix products and attention, or all."""


@dataclass(frozen=True)
class Partition:
    """A layer's two regions. What is kept is an output of one and an input of the other, the same node of the layer."""

    forward: Piece
    backward: Piece


def partition(layer: JointGraph, parameters: frozenset[int], policy: Policy) -> Partition:
    """The regions of a layer.

    Args:
        parameters: which inputs are parameters or buffers.
    """
    after = _dependent(layer.module, layer.tangents.values())
    from_parameters = _only_from(layer.module, {layer.inputs[index] for index in parameters})
    keep = (_KEPT[policy](layer) | _random(layer.module)) - after - from_parameters
    ends = {*layer.inputs.values(), *layer.tangents.values()}
    backward = extract(layer.module, [*layer.gradients.values()], (keep | ends).__contains__)
    kept = [node for node in backward.inputs if node not in ends and node not in layer.outputs]
    return Partition(extract(layer.module, [*layer.outputs, *kept], ends.__contains__), backward)


def _dependent(module: GraphModule, sources: Iterable[Node]) -> set[Node]:
    """Nodes that depend on any of the sources."""
    found = set(sources)
    for node in module.graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _only_from(module: GraphModule, sources: set[Node]) -> set[Node]:
    """Nodes that depend on nothing but the sources."""
    found = set(sources)
    for node in module.graph.nodes:
        if node.op == "call_function" and all(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _cheapest(layer: JointGraph) -> set[Node]:
    """What torch's min-cut keeps: it repeats only what costs less than to write and read it.

    Where it keeps a view, what the view shows is kept, so that memory is held and counted once.
    """
    num_outputs, copy = len(layer.outputs), Graph()  # the partitioner changes what it is given
    copy.output(copy.graph_copy(layer.module.graph, {}))
    forward, _ = min_cut_rematerialization_partition(GraphModule(layer.module, copy), [], num_fwd_outputs=num_outputs)
    names = {node.name for node in returned(forward)[num_outputs:]}
    return {viewed(node) for node in layer.module.graph.nodes if node.name in names}


def _products(layer: JointGraph) -> set[Node]:
    """Matrix products and attention: the ops whose floating-point operations are worth counting."""
    return {node for node in layer.module.graph.nodes if is_tensor(node) and _op(node) in flop_registry}


def _nothing(layer: JointGraph) -> set[Node]:
    return set()


_KEPT: dict[Policy, Callable[[JointGraph], set[Node]]] = {"none": _cheapest, "selective": _products, "full": _nothing}
"""What the forward hands to the backward where that needs it."""


def _random(module: GraphModule) -> set[Node]:
    """Kept under every policy: drawing again would draw other numbers."""
    tagged = torch.Tag.nondeterministic_seeded
    return {node for node in module.graph.nodes if is_tensor(node) and tagged in getattr(_overload(node), "tags", ())}


def _op(node: Node) -> object:
    return getattr(_overload(node), "overloadpacket", None)


def _overload(node: Node) -> object:
    """The op that computes a node, also if it returns several results and the node is one of them."""
    return node.all_input_nodes[0].target if is_result(node) else node.target
