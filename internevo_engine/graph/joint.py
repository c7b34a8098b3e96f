"""graph: forward and backward of a function as one graph of tensor operations, with the meaning of its ends.

graph/opaque.py traces a layer with it, graph/trace.py the step around the layers. This is where autograd runs, once,
while it is being recorded.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from internevo_engine.errors import EngineError
from internevo_engine.graph import compat
from internevo_engine.graph.extract import returned

OWN = "model"
"""Where a traced module holds the user's model."""

HINT = "graph.mode=hooks trains it without capture"


class CaptureError(EngineError):
    """The training step can't be captured as one graph."""

    exit_code = 2


@dataclass(frozen=True, eq=False)
class JointGraph:
    """The graph and its ends. Tangents are gradients of outputs: inputs of the backward."""

    module: GraphModule
    inputs: Mapping[int | str, Node]
    """Arguments by position, parameters and buffers by name."""
    outputs: tuple[Node, ...]
    tangents: Mapping[int, Node]
    """By position of the output."""
    gradients: Mapping[int | str, Node]
    """Of inputs, named like them."""


def trace_joint(module: nn.Module, arguments: Sequence[Tensor]) -> JointGraph:
    """Trace `module(*arguments)` and its gradients; all tensors are fake.

    Raises:
        CaptureError: it changes a parameter, a buffer or an argument.
    """
    with ExitStack() as stack:
        joint = compat.aot_export_joint_with_descriptors(stack, module, tuple(arguments)).graph_module
    placeholders = [(node.meta["desc"], node) for node in joint.graph.find_nodes(op="placeholder")]
    outputs = list(zip(joint.graph.output_node().meta["desc"], returned(joint), strict=True))
    changed = [desc.mutated_input for desc, _ in outputs if isinstance(desc, compat.InputMutationAOTOutput)]
    if changed:
        names = ", ".join(_readable(_key(desc)) for desc in changed)
        raise CaptureError(f"the forward pass changes {names}, which a captured step can't; {HINT}")
    return JointGraph(
        joint,
        inputs={_key(desc): node for desc, node in placeholders if not isinstance(desc, compat.TangentAOTInput)},
        outputs=tuple(node for desc, node in outputs if isinstance(desc, compat.PlainAOTOutput)),
        tangents={_position(desc): node for desc, node in placeholders if isinstance(desc, compat.TangentAOTInput)},
        gradients={
            _key(desc.grad_of): node for desc, node in outputs if isinstance(desc, compat.GradAOTOutput) and node
        },
    )


def _readable(key: int | str) -> str:
    return f"input {key} of a layer" if isinstance(key, int) else key.removeprefix(f"{OWN}.")


def _position(tangent: Any) -> int:
    return tangent.output.idx


def _key(descriptor: Any) -> int | str:
    """An argument's position, a parameter's or buffer's name."""
    return descriptor.idx if isinstance(descriptor, compat.PlainAOTInput) else descriptor.target
