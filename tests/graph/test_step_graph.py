"""The shape of a captured step: what the schedule builds on."""

import time
from itertools import pairwise
from math import prod

import pytest
import torch

from internevo_engine.config.schema import ModelConfig
from internevo_engine.data.packing import MicroBatch
from internevo_engine.graph.capture import capture
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.models.flops import model_flops
from internevo_engine.models.loss import token_loss
from tests.graph.models import decoder, decoder_config, meta_decoder, pack


@pytest.fixture(scope="module")
def graph() -> StepGraph:
    return capture(decoder("internlm"), token_loss, pack())


def test_equal_layers_share_a_forward_and_a_backward_region(graph: StepGraph) -> None:
    assert [call.name for call in graph.calls] == [
        "fwd.embedding+rope",
        "fwd.layers.0",
        "fwd.layers.1",
        "fwd.layers.2",
        "loss.norm+head",
        "bwd.layers.2",
        "bwd.layers.1",
        "bwd.layers.0",
        "bwd.embedding",
    ]
    assert [call.region.name for call in graph.calls] == [
        "fwd0", "fwd1", "fwd1", "fwd1", "loss2", "bwd3", "bwd3", "bwd3", "bwd4",
    ]  # fmt: skip


def test_every_value_is_computed_once_and_before_it_is_read(graph: StepGraph) -> None:
    outputs = [name for call in graph.calls for name in call.outputs]
    assert len(outputs) == len(set(outputs))
    for value in graph.values.values():
        assert all(number > (-1 if value.producer is None else value.producer) for number in value.consumers)
        assert all(earlier < later for earlier, later in pairwise(value.consumers))
    given = {name for name, value in graph.values.items() if value.producer is None}
    assert given == {*graph.parameters, *graph.constants, *graph.batch_values}


def test_every_output_is_read_or_a_result(graph: StepGraph) -> None:
    results = {graph.loss, graph.count, *graph.gradients.values()}
    unread = {value.name for value in graph.values.values() if not value.consumers and value.producer is not None}
    assert unread <= results


def test_every_parameter_has_a_gradient_of_its_shape(graph: StepGraph) -> None:
    model = decoder("internlm")
    assert graph.parameters == tuple(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        assert graph.values[name].shape == graph.values[graph.gradients[name]].shape == parameter.shape


def test_the_backward_takes_parameters_again_and_nothing_kept_is_computed_from_parameters_alone() -> None:
    graph = capture(decoder("internlm"), token_loss, pack())
    backward = next(call for call in graph.calls if call.name == "bwd.layers.1")
    matrices = {name for name in graph.parameters if name.startswith("layers.1.") and name.endswith("weight")}
    assert matrices <= set(backward.inputs)
    shapes = {graph.values[name].shape for name in graph.parameters if len(graph.values[name].shape) > 1}
    assert not {value.shape for value in graph.kept} & (shapes | {shape[::-1] for shape in shapes})


def test_flops_are_those_of_the_model_formula(graph: StepGraph) -> None:
    model = decoder_config("internlm")
    expected = model_flops(model, 48, 2 * 24**2)
    attention_again = 48 * 24 * model.hidden * model.layers  # the backward computes the scores a second time
    assert sum(call.region.flops for call in graph.calls) == expected + attention_again


def test_the_text_has_a_line_a_call(graph: StepGraph) -> None:
    head, *lines = str(graph).splitlines()
    assert head.startswith("9 calls of 5 regions, 27 parameters, ")
    assert lines[1].split(" -> ") == [
        "   1 fwd.layers.0             fwd1     3.1 M FLOP 779 kB        embedding+rope.view embedding+rope.unsqueeze "
        "embedding+rope.unsqueeze_1 batch.cu_seqlens [8 parameters 124 kB]",
        "layers.0.out0 [11 kept 149 kB]",
    ]


def test_seven_billion_parameters_are_captured_on_meta_in_seconds() -> None:
    shape = {"vocab": 103168, "layers": 32, "hidden": 4096, "heads": 32, "ffn": 11008}
    model = ModelConfig.model_validate({"family": "internlm", **shape})
    ints = {"dtype": torch.int64, "device": "meta"}
    tokens, labels, positions = (torch.empty(4096, **ints) for _ in range(3))
    batch = MicroBatch(tokens, labels, positions, torch.empty(4097, dtype=torch.int32, device="meta"))
    started = time.perf_counter()
    graph = capture(meta_decoder(model, 2048), token_loss, batch)
    assert time.perf_counter() - started < 60
    assert len(graph.calls) == 67
    assert len(graph.regions) == 5
    assert sum(prod(graph.values[name].shape) for name in graph.parameters) > 7e9
