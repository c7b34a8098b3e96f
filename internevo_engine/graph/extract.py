"""graph: cut a piece out of a traced graph. Everything that capture does to graphs is this one operation.

Used by graph/partition.py (a layer's forward and backward) and graph/assemble.py (what lies between the layers).
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node


@dataclass(frozen=True)
class Piece:
    """A graph cut out, and the nodes of the source that its inputs and outputs stand for."""

    module: GraphModule
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]


def extract(source: GraphModule, outputs: Sequence[Node], is_given: Callable[[Node], bool]) -> Piece:
    """The smallest graph that computes `outputs` from given nodes, in the order of the source.

    A node that isn't given is computed again from its own inputs, so pieces share only what they are given. Every
    placeholder that is reached has to be given.
    """
    needed, pending = set[Node](), [*outputs]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [] if is_given(node) else node.all_input_nodes
    ordered = [node for node in source.graph.nodes if node in needed]
    inputs = [node for node in ordered if is_given(node)]
    return Piece(_copied(source, ordered, inputs, outputs), tuple(inputs), tuple(outputs))


def _copied(source: GraphModule, nodes: Sequence[Node], inputs: Sequence[Node], outputs: Sequence[Node]) -> GraphModule:
    graph, copies = Graph(), dict[Node, Node]()
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(_not_an_input(graph, copies[node]) for node in outputs))
    return GraphModule(source, graph)


def _not_an_input(graph: Graph, node: Node) -> Node:
    """An output that shows an input's memory is copied: whoever frees or overwrites the input can't know of it."""
    if viewed(node).op != "placeholder":
        return node
    clone = graph.call_function(torch.ops.aten.clone.default, (node,))
    clone.meta = dict(node.meta)
    return clone


def viewed(node: Node) -> Node:
    """The node whose memory a view shows, through any number of views; what is no view is its own."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node


def is_view(node: Node) -> bool:
    """It shows the memory of its first input, so it costs nothing to do again."""
    if is_result(node):
        return is_view(node.all_input_nodes[0])
    return getattr(node.target, "is_view", False) or node.target is torch.ops.aten._unsafe_view.default


def is_result(node: Node) -> bool:
    """It picks one of several results of its input."""
    return node.target is operator.getitem


def is_tensor(node: Node) -> bool:
    """It computes one tensor, neither several nor a subgraph."""
    return isinstance(node.meta.get("val"), Tensor)


def returned(module: GraphModule) -> list[Node]:
    """The nodes that a graph returns; None where it returns nothing."""
    nodes = module.graph.output_node().args[0]
    assert isinstance(nodes, tuple | list), "a traced graph returns a sequence"
    return [cast(Node, node) for node in nodes]
