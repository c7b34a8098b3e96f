"""graph: layers as opaque nodes while the step is traced.

The tracer spends half a second on every layer it sees through. So graph/trace.py lets it see each kind of layer once,
by itself, and puts an op without content in place of every layer of the step. graph/sections.py finds these ops in the
flat graph again. Nothing ever runs them.
"""

import json
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from internevo_engine.graph import compat
from internevo_engine.graph.joint import JointGraph, trace_joint


@torch.library.custom_op("internevo::layer", mutates_args=())
def layer(inputs: list[Tensor], kind: str, number: int, outputs: str, tangents: str, gradients: str) -> list[Tensor]:
    """Forward of a layer; its kind names its graph, its number tells the layers of a step apart.

    The rest describes tensors of the graph: its outputs, their gradients, which its backward takes, where they have
    one, and gradients of its inputs.
    """
    raise NotImplementedError("internevo::layer stands for a layer while a step is traced; nothing runs it")


@torch.library.custom_op("internevo::layer_backward", mutates_args=())
def layer_backward(inputs: list[Tensor], tangents: list[Tensor], number: int, gradients: str) -> list[Tensor]:
    """Backward of the layer of that number: from gradients of its outputs to those of its inputs."""
    raise NotImplementedError("internevo::layer_backward stands for a layer while a step is traced; nothing runs it")


@layer.register_fake
def _fake_layer(
    inputs: list[Tensor], kind: str, number: int, outputs: str, tangents: str, gradients: str
) -> list[Tensor]:
    return _tensors(outputs)


@layer_backward.register_fake
def _fake_backward(inputs: list[Tensor], tangents: list[Tensor], number: int, gradients: str) -> list[Tensor]:
    return _tensors(gradients)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, _, ctx.number, _, ctx.tangents, ctx.gradients = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, of_outputs: list[Tensor]) -> tuple[Any, ...]:
    described = zip(of_outputs, json.loads(ctx.tangents), strict=True)
    tangents = [_with_stride(gradient, tensor[1]) for gradient, tensor in described if tensor]
    found = iter(layer_backward([*ctx.saved_tensors], tangents, ctx.number, ctx.gradients))
    of_inputs = [next(found) if gradient else None for gradient in json.loads(ctx.gradients)]
    return of_inputs, None, None, None, None, None


layer.register_autograd(_backward, setup_context=_keep_for_backward)


def _with_stride(gradient: Tensor, stride: list[int]) -> Tensor:
    """As the layer's backward was traced: the gradient of a turned output comes turned."""
    if gradient.stride() == tuple(stride):
        return gradient
    return torch.empty_strided(gradient.shape, stride, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


LAYER, LAYER_BACKWARD = torch.ops.internevo.layer.default, torch.ops.internevo.layer_backward.default


def hide_layers(whole: GraphModule) -> dict[str, JointGraph]:
    """Put the op in place of every repeated layer in what Dynamo made of the step; returns their graphs by kind.

    A layer through which no gradient passes stays where it is.
    """
    graphs = dict[str, JointGraph]()
    for number, call in enumerate(whole.graph.find_nodes(op="call_function", target=compat.invoke_subgraph)):
        subgraph, name, *operands = cast(list[Any], call.args)
        examples: list[Tensor] = [operand.meta["example_value"] for operand in operands]
        wanted = [index for index, example in enumerate(examples) if example.requires_grad]
        if wanted:
            kind = f"{name}{wanted}"
            if kind not in graphs:
                graphs[kind] = trace_joint(whole.get_submodule(subgraph.target), [_leaf(e) for e in examples])
            _hide(whole, call, operands, kind, number, graphs[kind])
    whole.recompile()
    return graphs


def _leaf(example: Tensor) -> Tensor:
    return example.detach().requires_grad_(example.requires_grad)


def _hide(whole: GraphModule, call: Node, operands: list[Node], kind: str, number: int, graph: JointGraph) -> None:
    gradients = [graph.gradients.get(index) for index in range(len(operands))]
    tangents = [graph.tangents.get(index) for index in range(len(graph.outputs))]
    description = _description(graph.outputs), _description(tangents), _description(gradients)
    with whole.graph.inserting_before(call):
        hidden = whole.graph.call_function(LAYER, (operands, kind, number, *description))
    call.replace_all_uses_with(hidden)
    whole.graph.erase_node(call)


def _description(nodes: Sequence[Node | None]) -> str:
    """Tensors as text, because an op takes nothing else of the kind."""
    tensors = [node.meta["val"] if node else None for node in nodes]
    return json.dumps([t is not None and (t.shape, t.stride(), str(t.dtype), str(t.device)) for t in tensors])


def _tensors(description: str) -> list[Tensor]:
    return [
        torch.empty_strided(shape, stride, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device)
        for shape, stride, dtype, device in filter(None, json.loads(description))
    ]
