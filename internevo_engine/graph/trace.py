"""graph: the first half of capture. Trace forward, loss and backward of one micro-batch into one flat graph.

Called by graph/capture.py, which cuts the graph into calls of regions. A repeated layer's forward is one node of it, so
is its backward; every kind of layer has a graph of its own beside it.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from internevo_engine.graph import compat
from internevo_engine.graph.batch import BatchLayout, describe
from internevo_engine.graph.joint import HINT, OWN, CaptureError, JointGraph, trace_joint
from internevo_engine.graph.layers import marked, repeated_classes
from internevo_engine.graph.loss import LossFunction, loss_and_count
from internevo_engine.graph.module import placed
from internevo_engine.graph.opaque import hide_layers

TRACING = {
    "assume_static_by_default": True,
    "automatic_dynamic_shapes": False,
    "inline_single_use_invoke_subgraph": False,
}
"""Every shape is fixed, and a layer that is the only one of its kind is a region like the others."""


@dataclass(frozen=True)
class Step:
    """Forward and backward of one micro-batch as one graph, and the meaning of its inputs and outputs."""

    module: GraphModule
    parameters: Mapping[str, Node]
    """Parameters in flat buffers that the loss uses, in the order of named_parameters."""
    constants: Mapping[str, Node]
    """Buffers, and frozen parameters that live elsewhere."""
    batch: Mapping[str, Node]
    loss: Node
    """The sum over valid tokens, 0-dim."""
    count: Node
    gradients: Mapping[str, Node]
    """By name of the parameter."""
    layers: Mapping[str, JointGraph]
    """By kind: the graphs of the layers, which are opaque in `module`."""
    layout: BatchLayout

    @property
    def output(self) -> Node:
        return self.module.graph.output_node()


def trace(model: nn.Module, loss_fn: LossFunction, example_batch: object) -> Step:
    """Trace `loss_fn(model, example_batch)` and its gradients, without computing anything.

    Parameters, buffers and batch may be real or on meta. Fake ones take their place while tracing; instead of meta on
    the CPU, because on meta some losses of torch have gradients that are silently zero.

    Raises:
        CaptureError: the step has no whole graph, changes a buffer, or has no scalar loss to differentiate.
    """
    layout = describe(example_batch)
    mode = compat.FakeTensorMode(shape_env=compat.ShapeEnv(), static_shapes=True)  # Inductor's cache asks for one
    inputs = [_fake(tensor, mode) for tensor in layout.tensors(example_batch).values()]
    with ExitStack() as stack:
        stack.enter_context(marked(repeated_classes(model)))
        stack.enter_context(compat.swapped_tensors(model, _fake_state(model, mode), tie_weights=True))
        stack.enter_context(compat.dynamo_config.patch(TRACING))
        stack.enter_context(_breaks_named())
        whole = compat.dynamo_graph_capture_for_export(_Function(model, loss_fn, layout))(*inputs)
        layers = hide_layers(whole)
        joint = trace_joint(whole, inputs)
    _check_loss(joint)
    _seed_loss(joint)
    joint.module.graph.eliminate_dead_code()
    return _named(joint, model, layers, layout)


class _Function(nn.Module):
    """The step as a function of tensors alone; the model's parameters are its own, under OWN."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction, layout: BatchLayout) -> None:
        super().__init__()
        self.model, self.loss_fn, self.layout = model, loss_fn, layout

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return loss_and_count(self.loss_fn, self.model, self.layout.rebuild(tensors))


def _fake_state(model: nn.Module, mode: compat.FakeTensorMode) -> dict[str, Tensor]:
    parameters = {name: nn.Parameter(_fake(p, mode), p.requires_grad) for name, p in model.named_parameters()}
    return {**parameters, **{name: _fake(buffer, mode) for name, buffer in model.named_buffers()}}


def _fake(tensor: Tensor, mode: compat.FakeTensorMode) -> Tensor:
    device = torch.device("cpu") if tensor.is_meta else tensor.device
    with mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


@contextmanager
def _breaks_named() -> Iterator[None]:
    """What the tracer can't follow becomes one error with the line of the user's code."""
    try:
        yield
    except compat.TorchDynamoException as error:
        frames = getattr(error, "real_stack", None)
        where = f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}: " if frames else ""
        raise CaptureError(f"{where}the training step is not one graph: {_reason(error)}; {HINT}") from error


def _reason(error: BaseException) -> str:
    """What the innermost tracer said; those around it only say that it failed."""
    while isinstance(error.__context__, compat.TorchDynamoException):
        error = error.__context__
    return str(error).strip().splitlines()[0]


def _check_loss(joint: JointGraph) -> None:
    shape, trained = tuple(joint.outputs[0].meta["val"].shape), [key for key in joint.gradients if isinstance(key, str)]
    if shape or not trained:
        raise CaptureError(
            f"loss_fn returned a loss of shape {shape} that depends on {len(trained)} trained parameters; "
            "return a 0-dim sum and the number of valid tokens, or a mean"
        )


def _seed_loss(joint: JointGraph) -> None:
    """The gradient of the loss with respect to itself is one: a constant of the graph, where it is first used."""
    graph = joint.module.graph
    for node in joint.tangents.values():
        value = node.meta["val"]
        with graph.inserting_before(next(iter(node.users), graph.output_node())):
            shape, options = list(value.shape), {"dtype": value.dtype, "device": value.device}
            ones = graph.call_function(torch.ops.aten.ones.default, (shape,), options)
        ones.meta["val"] = value
        node.replace_all_uses_with(ones)
        graph.erase_node(node)


def _named(joint: JointGraph, model: nn.Module, layers: Mapping[str, JointGraph], layout: BatchLayout) -> Step:
    """Under the names of the user's model and batch."""
    inputs, gradients = (
        {key.removeprefix(f"{OWN}."): node for key, node in nodes.items() if isinstance(key, str)}
        for nodes in (joint.inputs, joint.gradients)
    )
    names = placed(model)
    return Step(
        module=joint.module,
        parameters={name: inputs[name] for name in names if name in inputs},
        constants={name: node for name, node in inputs.items() if name not in names},
        batch={name: joint.inputs[index] for index, name in enumerate(layout.names)},
        loss=joint.outputs[0],
        count=joint.outputs[1],
        gradients=gradients,
        layers=layers,
        layout=layout,
    )
