"""graph: what a region costs, counted on its graph. The scheduler turns it into nanoseconds.

Called by graph/assemble.py once a region.
"""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg
from torch.utils.flop_counter import flop_registry

from internevo_engine.graph.extract import is_result, is_view


def flops(module: GraphModule) -> int:
    """Floating-point operations of matrix products, convolutions and attention, by torch's formulas."""
    return sum(_flops(node) for node in module.graph.nodes if node.op == "call_function")


def bytes_moved(module: GraphModule) -> int:
    """Bytes that its ops read and write one by one, as in eager mode; a compiler that fuses ops moves less."""
    ops = [n for n in module.graph.nodes if n.op == "call_function" and not is_view(n) and not is_result(n)]
    return sum(_num_bytes(node) + sum(map(_num_bytes, node.all_input_nodes)) for node in ops)


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _flops(node: Node) -> int:
    formula = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if formula is None:
        return 0
    args, kwargs = map_arg((node.args, node.kwargs), lambda argument: argument.meta["val"])
    return formula(*args, **kwargs, out_val=node.meta["val"])


def _num_bytes(node: Node) -> int:
    return sum(map(num_bytes, tensors(node.meta.get("val"))))


def tensors(value: Any) -> list[Tensor]:
    """The tensors of a result, which may be several."""
    values = value if isinstance(value, tuple | list) else (value,)
    return [value for value in values if isinstance(value, torch.Tensor)]
