"""graph: the end of capture. Name the drafts' values and calls, find equal regions, count what they cost.

Takes drafts from graph/sections.py, hands on the StepGraph.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, count, takewhile
from operator import attrgetter

from torch import Tensor, nn
from torch.fx import GraphModule, Node, map_arg

from internevo_engine.graph.cost import bytes_moved, flops
from internevo_engine.graph.extract import is_result
from internevo_engine.graph.module import placed
from internevo_engine.graph.opaque import LAYER, LAYER_BACKWARD
from internevo_engine.graph.sections import Draft, Key
from internevo_engine.graph.step_graph import Call, Region, StepGraph, Value
from internevo_engine.graph.trace import Step


def assemble(step: Step, drafts: Sequence[Draft], model: nn.Module) -> StepGraph:
    """The step of `model` from the drafts of its calls."""
    state: dict[Key, str] = {node: name for name, node in {**step.parameters, **step.constants}.items()}
    gradient_of: dict[Key, str] = {node: name for name, node in step.gradients.items()}
    names: dict[Key, str] = {**state, **{node: f"batch.{name}" for name, node in step.batch.items()}}
    regions, calls, taken = _Regions(), list[Call](), {*names.values()}
    for draft in drafts:
        owner = _owner(draft, state, gradient_of)
        for key in draft.outputs:
            names[key] = _unused(_value_name(key, owner, gradient_of), taken)
        name = _unused(f"{draft.phase}.{owner}", taken)
        inputs, outputs = (tuple(names[key] for key in keys) for keys in (draft.inputs, draft.outputs))
        calls.append(Call(name, draft.phase, regions.of(draft), inputs, outputs))
    return StepGraph(
        calls=tuple(calls),
        values=_values(names, calls),
        parameters=tuple(placed(model)),
        gradients={name: names[node] for name, node in step.gradients.items()},
        constants={name: _state(model, name) for name in step.constants},
        batch=step.layout,
        batch_values=tuple(f"batch.{name}" for name in step.layout.names),
        loss=names[step.loss],
        count=names[step.count],
    )


class _Regions:
    """Regions found so far, by all that decides what they compute."""

    def __init__(self) -> None:
        self._found = dict[tuple[str, ...], Region]()

    def of(self, draft: Draft) -> Region:
        module = draft.module
        signature = _signature(module)
        if signature not in self._found:
            name = f"{draft.phase}{len(self._found)}"
            self._found[signature] = Region(name, module, flops(module), bytes_moved(module))
        return self._found[signature]


def _signature(module: GraphModule) -> tuple[str, ...]:
    """A line a node, with numbers in place of names. Tensors and subgraphs that the graph holds count as themselves."""
    number = {node: f"%{index}" for index, node in enumerate(module.graph.nodes)}
    return tuple(_signature_line(module, node, number) for node in module.graph.nodes)


def _signature_line(module: GraphModule, node: Node, number: Mapping[Node, str]) -> str:
    if node.op == "placeholder":
        tensor = node.meta["val"]
        return f"input {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device}"
    if node.op == "get_attr":
        return f"held {id(attrgetter(str(node.target))(module))}"
    return f"{node.target} {map_arg((node.args, node.kwargs), lambda argument: number[argument])}"


def _owner(draft: Draft, state: Mapping[Key, str], gradient_of: Mapping[Key, str]) -> str:
    """The modules whose parameters a call reads, or computes gradients of: 'layers.3', 'norm+head'."""
    names = [state[key] for key in draft.inputs if key in state]
    names += [gradient_of[key] for key in draft.outputs if key in gradient_of]
    modules = list(dict.fromkeys(_module(name) for name in names))
    shared = _shared_path(modules)
    return shared or ("+".join(modules) if len(modules) <= MOST_NAMED else f"{modules[0]}..{modules[-1]}") or "glue"


def _module(parameter: str) -> str:
    """A model's own parameter stands for itself."""
    return parameter.rpartition(".")[0] or parameter


MOST_NAMED = 3
"""Modules that the name of a call spells out."""


def _shared_path(modules: Sequence[str]) -> str:
    """['layers.3.attention', 'layers.3.ffn'] -> 'layers.3'"""
    columns = zip(*(module.split(".") for module in modules), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns))


def _value_name(key: Key, owner: str, gradient_of: Mapping[Key, str]) -> str:
    if key in gradient_of:
        return f"grad.{gradient_of[key]}"
    node = key if isinstance(key, Node) else key[1]
    if not is_result(node):
        return f"{owner}.{node.name}"
    op, index = node.all_input_nodes[0], node.args[1]
    return f"{owner}.{_RESULTS.get(op.target, op.name)}{index}"


_RESULTS: dict[object, str] = {LAYER: "out", LAYER_BACKWARD: "grad"}
"""What a layer's results are called; those of other ops are called like the op."""


def _unused(name: str, taken: set[str]) -> str:
    """The name, with a number if it is taken: layers without parameters have no name of their own."""
    name = next(name for name in chain([name], (f"{name}#{number}" for number in count(2))) if name not in taken)
    taken.add(name)
    return name


def _values(names: Mapping[Key, str], calls: Sequence[Call]) -> dict[str, Value]:
    producer = {name: number for number, call in enumerate(calls) for name in call.outputs}
    consumers = defaultdict[str, list[int]](list)
    for number, call in enumerate(calls):
        for name in call.inputs:
            consumers[name].append(number)
    return {
        name: Value(name, tuple(tensor.shape), tensor.dtype, producer.get(name), tuple(consumers[name]))
        for name, tensor in ((name, _tensor(key)) for key, name in names.items())
    }


def _tensor(key: Key) -> Tensor:
    return (key if isinstance(key, Node) else key[1]).meta["val"]


def _state(model: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its name."""
    return attrgetter(name)(model)
