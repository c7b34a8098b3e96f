import re

import pytest
import torch

from internevo_engine.graph.capture import capture
from internevo_engine.graph.joint import CaptureError
from internevo_engine.graph.partition import Policy
from internevo_engine.graph.recompute import MemoryBudget, Recompute, rising
from internevo_engine.graph.run import batch_values, run_micro_batch
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.models.loss import token_loss
from tests.graph.models import Stack, decoder, mean_square, pack


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return decoder("internlm")


def graph_of(model: torch.nn.Module, recompute: Recompute) -> StepGraph:
    return capture(model, token_loss, pack(), recompute=recompute)


def test_kept_bytes_fall_from_none_over_selective_to_full(model: torch.nn.Module) -> None:
    none, selective, full = (graph_of(model, policy).kept_bytes for policy in ("none", "selective", "full"))
    assert none > 1.4 * selective > 5 * full


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_kept_bytes_are_in_memory_between_forward_and_backward(model: torch.nn.Module, policy: Policy) -> None:
    graph = graph_of(model, policy)
    values = {**graph.constants, **dict(model.named_parameters()), **batch_values(graph, pack())}
    given = {value.untyped_storage().data_ptr() for value in values.values()}
    with torch.no_grad():
        for call in (call for call in graph.calls if call.phase == "fwd"):
            outputs = call.region.module(*(values[name] for name in call.inputs))
            values.update(zip(call.outputs, outputs, strict=True))
    storages = {s.data_ptr(): s.nbytes() for s in (values[v.name].untyped_storage() for v in graph.kept)}
    assert not given & storages.keys()
    assert sum(storages.values()) == graph.kept_bytes


def test_full_keeps_only_what_the_layers_take(model: torch.nn.Module) -> None:
    graph = graph_of(model, "full")
    inputs = {name for call in graph.calls if call.name.startswith("fwd.layers") for name in call.inputs}
    assert {value.name for value in graph.kept} <= inputs


def test_selective_never_repeats_a_matrix_product(model: torch.nn.Module) -> None:
    flops = {
        policy: {call.phase: call.region.flops for call in graph_of(model, policy).calls if "layers" in call.name}
        for policy in ("none", "selective", "full")
    }
    assert flops["selective"] == flops["none"]
    assert flops["full"]["bwd"] > flops["none"]["bwd"]


RECOMPUTE = ["selective", "full", 0.0, 0.34, 1.0, MemoryBudget(300_000)]


@pytest.mark.parametrize("recompute", RECOMPUTE, ids=str)
def test_recomputation_changes_no_bit(model: torch.nn.Module, recompute: Recompute) -> None:
    parameters, batch = dict(model.named_parameters()), pack((10, 20, 5, 13), seed=2)
    expected = run_micro_batch(graph_of(model, "none"), parameters, batch)
    found = run_micro_batch(graph_of(model, recompute), parameters, batch)
    assert found.loss_sum.item() == expected.loss_sum.item()
    assert all(torch.equal(found.gradients[name], grad) for name, grad in expected.gradients.items())


def test_a_fraction_repeats_the_first_layers(model: torch.nn.Module) -> None:
    flops = {call.name: call.region.flops for call in graph_of(model, 0.34).calls}
    assert flops["bwd.layers.0"] > flops["bwd.layers.1"] == flops["bwd.layers.2"]


def test_a_budget_is_kept_with_as_little_recomputation_as_possible(model: torch.nn.Module) -> None:
    none, selective, full = (graph_of(model, policy).kept_bytes for policy in ("none", "selective", "full"))
    assert graph_of(model, MemoryBudget(none)).kept_bytes == none
    one_layer = graph_of(model, MemoryBudget(none - 1)).kept_bytes
    assert none - one_layer == (none - selective) // 3
    assert graph_of(model, MemoryBudget(full)).kept_bytes == full


def test_a_budget_that_nothing_meets_is_refused_with_the_numbers(model: torch.nn.Module) -> None:
    message = "graph.recompute.budget_gb=1e-06: with full recomputation a micro-batch still keeps 43 kB"
    with pytest.raises(CaptureError, match=re.escape(message)):
        graph_of(model, MemoryBudget(1000))


def test_recomputation_rises_layer_by_layer() -> None:
    assert list(rising(2)) == [
        ("none", "none"),
        ("selective", "none"),
        ("selective", "selective"),
        ("full", "selective"),
        ("full", "full"),
    ]


def test_a_cast_parameter_is_cast_again_instead_of_kept() -> None:
    graph = capture(Stack(), mean_square, torch.randn(5, 8))
    assert any("layers.1.inner.weight" in call.inputs for call in graph.calls if call.phase == "bwd")
    assert not [value for value in graph.kept if value.shape == (8, 8)]
