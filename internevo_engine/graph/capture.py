"""graph: the stage between plan and schedule. Capture a training step as a StepGraph.

    model, loss_fn, example batch -> trace -> sections -> assemble -> StepGraph

Nothing is computed and the model is left as it was; its parameters may be on meta. What is captured runs without
autograd's engine.
"""

from functools import cache

from torch import nn

from internevo_engine.graph.assemble import assemble
from internevo_engine.graph.loss import LossFunction
from internevo_engine.graph.partition import partition
from internevo_engine.graph.recompute import Policies, Recompute, choose
from internevo_engine.graph.sections import drafts, find_layers
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.graph.trace import trace


def capture(
    model: nn.Module, loss_fn: LossFunction, example_batch: object, *, recompute: Recompute = "none"
) -> StepGraph:
    """Forward, loss and backward of one micro-batch of `model` as calls of few regions.

    Layers that repeat in a ModuleList (same class, same parameter shapes) share their regions; so do those whose
    forward is decorated with `torch.compiler.nested_compile_region`. Later batches have to have the example's shapes.

    Args:
        loss_fn: (model, batch) -> (sum of the loss over valid tokens, their number), or a mean.
        example_batch: a dataclass, mapping, sequence or tensor; only its shapes are used.
        recompute: how much of the forward the backward repeats.

    Raises:
        CaptureError: the step can't be captured whole, or doesn't fit the memory that `recompute` allows.
    """
    step = trace(model, loss_fn, example_batch)
    layers = find_layers(step)
    split = cache(partition)

    def graph_of(policies: Policies) -> StepGraph:
        chosen = zip(layers, policies, strict=True)
        partitions = [split(layer.graph, layer.parameters, policy) for layer, policy in chosen]
        return assemble(step, drafts(step, layers, partitions), model)

    return choose(recompute, len(layers), graph_of)
