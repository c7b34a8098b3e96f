"""graph: the second half of capture begins here. Cut the flat graph of a step into the pieces that become calls.

Takes what graph/trace.py traced, hands drafts of calls to graph/assemble.py. A draft is a layer's forward, a layer's
backward, or what lies between two of them: embedding, final norm and head with the loss.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch.fx import GraphModule, Node

from internevo_engine.graph.extract import extract, is_result, is_tensor, is_view
from internevo_engine.graph.joint import JointGraph
from internevo_engine.graph.opaque import LAYER, LAYER_BACKWARD
from internevo_engine.graph.partition import Partition
from internevo_engine.graph.step_graph import Phase
from internevo_engine.graph.trace import Step

Key = Node | tuple[int, Node]
"""What identifies a value: a node of the flat graph, or (number of the layer, node of the layer's graph)."""

BEFORE = -1
"""The section of what is there from the start."""


@dataclass(frozen=True)
class Draft:
    """A call without names."""

    phase: Phase
    module: GraphModule
    inputs: tuple[Key, ...]
    outputs: tuple[Key, ...]


@dataclass(frozen=True)
class Layer:
    """One use of a repeated layer: two nodes of the flat graph."""

    number: int
    """In the order of the forward."""
    graph: JointGraph
    forward: Node
    backward: Node | None
    """None: the loss doesn't depend on it."""
    parameters: frozenset[int]
    """Which inputs are parameters or buffers."""

    def keys(self) -> dict[Node, Key]:
        """Which value of the step each input and output of the layer's graph is, gradients included."""
        pairs = [*zip(self.graph.inputs.values(), _tensors(self.forward, 0), strict=True)]
        pairs += _results(self.forward, self.graph.outputs)
        if self.backward:
            pairs += zip(self.graph.tangents.values(), _tensors(self.backward, 1), strict=True)
            pairs += _results(self.backward, [*self.graph.gradients.values()])
        return dict(pairs)


def find_layers(step: Step) -> tuple[Layer, ...]:
    """The layers in the order of the forward."""
    find = step.module.graph.find_nodes
    backwards = {call.args[2]: call for call in find(op="call_function", target=LAYER_BACKWARD)}
    state = {*step.parameters.values(), *step.constants.values()}
    layers = list[Layer]()
    for forward in find(op="call_function", target=LAYER):
        kind, number = cast(tuple[str, int], forward.args[1:3])
        parameters = frozenset(index for index, node in enumerate(_tensors(forward, 0)) if node in state)
        layers.append(Layer(len(layers), step.layers[kind], forward, backwards.get(number), parameters))
    return tuple(layers)


def drafts(step: Step, layers: Sequence[Layer], partitions: Sequence[Partition]) -> list[Draft]:
    """Calls in the order of the flat graph; `partitions` holds the two regions of each layer."""
    layer_of = {node: layer for layer in layers for node in (layer.forward, layer.backward) if node}
    section_of = _sections(step, layer_of)
    readers = _readers(step, section_of)
    phase_of = _phases(layers, section_of)
    members = defaultdict[int, list[Node]](list)
    for node, section in section_of.items():
        members[section].append(node)
    del members[BEFORE]
    found = list[Draft]()
    for section, nodes in members.items():
        if layer := layer_of.get(nodes[0]):
            found.append(_layer_draft(layer, partitions[layer.number], nodes[0]))
        elif outputs := [node for node in nodes if is_tensor(node) and readers[node] - {section}]:
            given = {node for node, other in section_of.items() if other != section}
            piece = extract(step.module, outputs, given.__contains__)
            found.append(Draft(phase_of(section), piece.module, piece.inputs, piece.outputs))
    return found


def _layer_draft(layer: Layer, partition: Partition, node: Node) -> Draft:
    """Values that its forward keeps for its backward are known only to the two."""
    forward, keys = node is layer.forward, layer.keys()
    piece = partition.forward if forward else partition.backward
    inputs, outputs = (
        tuple(keys.get(node, (layer.number, node)) for node in nodes) for nodes in (piece.inputs, piece.outputs)
    )
    return Draft("fwd" if forward else "bwd", piece.module, inputs, outputs)


def _sections(step: Step, layer_of: Mapping[Node, Layer]) -> dict[Node, int]:
    """Numbers the layers' nodes and the maximal runs of other nodes between them, in order.

    Views belong to nobody: who needs one takes what it shows and views again. Except where a layer or the step itself
    wants to have it: those are values.
    """
    wanted = {argument for node in (*layer_of, step.output) for argument in node.all_input_nodes}
    section_of = dict[Node, int]()
    current, in_run = BEFORE, False
    for node in step.module.graph.nodes:
        if node.op == "placeholder":
            section_of[node] = BEFORE
        elif is_result(node) and node.all_input_nodes[0] in section_of:
            section_of[node] = section_of[node.all_input_nodes[0]]
        elif node in layer_of or (node.op == "call_function" and (node in wanted or not is_view(node))):
            current += node in layer_of or not in_run
            in_run = node not in layer_of
            section_of[node] = current
    return section_of


def _readers(step: Step, section_of: Mapping[Node, int]) -> dict[Node, set[int]]:
    """Sections that read a value, through views or not; the step's output counts as one."""
    readers = defaultdict[Node, set[int]](set)
    for node in step.module.graph.nodes:
        if node in section_of or node is step.output:
            for argument in node.all_input_nodes:
                readers[_value(argument, section_of)].add(section_of.get(node, len(section_of)))
    return readers


def _value(node: Node, section_of: Mapping[Node, int]) -> Node:
    """The value behind a view that is none itself."""
    while node not in section_of and is_view(node):
        node = node.all_input_nodes[0]
    return node


def _phases(layers: Sequence[Layer], section_of: Mapping[Node, int]) -> Callable[[int], Phase]:
    """Of a run: what comes after the last layer's forward and before the first layer's backward is the loss."""
    last = max((section_of[layer.forward] for layer in layers), default=BEFORE)
    first = min((section_of[layer.backward] for layer in layers if layer.backward), default=len(section_of))
    return lambda section: "fwd" if section < last else "bwd" if section > first else "loss"


def _tensors(call: Node, index: int) -> list[Node]:
    """A list of tensors among the arguments of a layer's op."""
    return cast(list[Node], call.args[index])


def _results(call: Node, nodes: Sequence[Node]) -> list[tuple[Node, Node]]:
    """Nodes that the layer's graph returns, and the nodes of the flat graph that pick them."""
    return [(nodes[cast(int, user.args[1])], user) for user in call.users]
