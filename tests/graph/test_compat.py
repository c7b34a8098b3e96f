"""A probe for each private name of PyTorch: a version that breaks one says here which."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from internevo_engine.graph import compat
from internevo_engine.graph.trace import TRACING


class Scaled(nn.Module):
    """A parameter, a buffer and a marked region."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("scale", torch.ones(3))

    @torch.compiler.nested_compile_region
    def region(self, x: Tensor) -> Tensor:
        return x * self.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.region(self.region(self.region(x))).sum(), (self.scale * self.weight).sum()


class Counting(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        self.scale.add_(1)
        return (x * self.weight).sum()


def joint_of(module: nn.Module, *inputs: Tensor) -> GraphModule:
    with ExitStack() as stack:
        return compat.aot_export_joint_with_descriptors(stack, module, inputs).graph_module


def descriptors(joint: GraphModule, op: str) -> list[object]:
    found = [node.meta["desc"] for node in joint.graph.find_nodes(op=op)]
    return found[0] if op == "output" else found


def region_graph() -> GraphModule:
    """(x * y).exp() for inputs of three numbers, on fake tensors of a mode with a shape environment."""
    mode = compat.FakeTensorMode(shape_env=compat.ShapeEnv(), static_shapes=True)
    with mode:
        inputs = torch.empty(3), torch.empty(3)
        return compat.make_fx(lambda x, y: ((x * y).exp(),))(*inputs)


def test_dynamo_graph_capture_for_export_and_invoke_subgraph_and_dynamo_config() -> None:
    with compat.dynamo_config.patch(TRACING):
        whole = compat.dynamo_graph_capture_for_export(Scaled())(torch.ones(3))
    first, *others = whole.graph.find_nodes(op="call_function", target=compat.invoke_subgraph)
    assert [operand.meta["example_value"].requires_grad for operand in first.args[2:]] == [False, True]
    names = {(call.args[0].target, call.args[1]) for call in others}
    assert len(others) == 2
    assert len(names) == 1
    assert all(isinstance(whole.get_submodule(target), GraphModule) for target, _ in names)


def test_torch_dynamo_exception_names_the_user_s_frame() -> None:
    def breaks(x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x

    with pytest.raises(compat.TorchDynamoException) as error:
        compat.dynamo_graph_capture_for_export(breaks)(torch.ones(3))
    assert error.value.real_stack[-1].filename == __file__


def test_aot_export_joint_with_descriptors_and_each_descriptor() -> None:
    joint = joint_of(compat.dynamo_graph_capture_for_export(Scaled())(torch.ones(3)), torch.ones(3))
    inputs = descriptors(joint, "placeholder")
    assert isinstance(inputs[0], compat.ParamAOTInput)
    assert isinstance(inputs[1], compat.BufferAOTInput)
    assert (inputs[0].target, inputs[1].target) == ("weight", "scale")
    assert isinstance(inputs[2], compat.PlainAOTInput)
    assert inputs[2].idx == 0
    assert [tangent.output.idx for tangent in inputs[3:] if isinstance(tangent, compat.TangentAOTInput)] == [0, 1]
    outputs = descriptors(joint, "output")
    assert [output.idx for output in outputs if isinstance(output, compat.PlainAOTOutput)] == [0, 1]
    gradients = [output.grad_of for output in outputs if isinstance(output, compat.GradAOTOutput)]
    assert gradients == inputs[:1]


def test_input_mutation_aot_output() -> None:
    joint = joint_of(compat.dynamo_graph_capture_for_export(Counting())(torch.ones(3)), torch.ones(3))
    (changed,) = (d for d in descriptors(joint, "output") if isinstance(d, compat.InputMutationAOTOutput))
    assert changed.mutated_input.target == "scale"


def test_min_cut_rematerialization_partition_keeps_the_names_of_nodes() -> None:
    module = compat.dynamo_graph_capture_for_export(nn.Sequential(nn.Linear(3, 3), nn.SiLU()))(torch.ones(2, 3))
    joint = joint_of(module, torch.ones(2, 3))
    names = {node.name for node in joint.graph.nodes}
    forward, _ = compat.min_cut_rematerialization_partition(joint, [], num_fwd_outputs=1)
    kept = [node.name for node in forward.graph.output_node().args[0][1:]]
    assert kept
    assert set(kept) <= names


def test_swapped_tensors_swaps_tied_ones_and_puts_them_back() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    own, other = model["a"].weight, nn.Parameter(torch.zeros(3, 3))
    with compat.swapped_tensors(model, {"a.weight": other}, tie_weights=True):
        assert model["a"].weight is model["b"].weight is other
    assert model["a"].weight is model["b"].weight is own


def test_make_fx_and_select_decomp_table() -> None:
    decomposed = compat.make_fx(lambda x: nn.functional.silu(x).clone(), compat.select_decomp_table())(torch.ones(3))
    assert torch.ops.aten.silu.default not in {node.target for node in decomposed.graph.nodes}


def test_force_stride_order_copies_where_the_strides_are_others() -> None:
    x = torch.arange(6.0).view(2, 3)
    turned = compat.force_stride_order(x, (1, 2))
    assert turned.stride() == (1, 2)
    assert torch.equal(turned, x)


def test_fake_tensor_mode_and_shape_env_and_detect_fake_mode() -> None:
    inputs = [node.meta["val"] for node in region_graph().graph.find_nodes(op="placeholder")]
    mode = compat.detect_fake_mode(inputs)
    assert isinstance(mode, compat.FakeTensorMode)
    assert isinstance(mode.shape_env, compat.ShapeEnv)
    assert all(type(size) is int for tensor in inputs for size in tensor.shape)


def test_compile_fx_inner_and_tracing_context_and_counters_and_inductor_config(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for hits in (0, 1):
        graph, before = region_graph(), compat.counters["inductor"]["fxgraph_cache_hit"]
        inputs = [node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")]
        context = compat.TracingContext(compat.detect_fake_mode(inputs))
        with compat.tracing(context), compat.inductor_config.patch(bucket_all_gathers_fx="none"):
            boxed = compat.compile_fx_inner(graph, inputs)
        assert compat.counters["inductor"]["fxgraph_cache_hit"] - before == hits
        torch.testing.assert_close(boxed([torch.ones(3), torch.zeros(3)])[0], torch.ones(3))


def test_pick_vec_isa_and_torch_key_are_asked_once() -> None:
    assert compat.pick_vec_isa() is compat.pick_vec_isa()
    assert compat.torch_key() is compat.torch_key()


def test_every_name_is_probed_here() -> None:
    with open(__file__) as file:
        text = file.read()
    assert [name for name in compat.__all__ if f"compat.{name}" not in text] == []
