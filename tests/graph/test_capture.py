from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from internevo_engine.errors import UsageError
from internevo_engine.graph.capture import capture
from internevo_engine.graph.joint import CaptureError
from internevo_engine.graph.run import MicroBatchResult, run_micro_batch
from internevo_engine.models.attention import pad_pieces
from internevo_engine.models.decoder import Layer
from internevo_engine.models.loss import token_loss
from tests.graph.models import (
    NUM_TOKENS,
    Stack,
    Tied,
    decoder,
    decoder_config,
    masked_batch,
    masked_loss,
    mean_square,
    meta_decoder,
    pack,
)


def autograd(model: nn.Module, loss_fn: Callable[[Any, Any], Any], batch: object) -> MicroBatchResult:
    """The oracle: loss and gradients as any training loop gets them."""
    model.zero_grad(set_to_none=True)
    result = loss_fn(model, batch)
    loss, count = result if isinstance(result, tuple) else (result, 1)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return MicroBatchResult(loss.detach(), torch.as_tensor(count), gradients)


def parameters(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def assert_equal_bits(found: MicroBatchResult, expected: MicroBatchResult) -> None:
    assert found.loss_sum.item() == expected.loss_sum.item()
    assert found.count.item() == expected.count.item()
    assert found.gradients.keys() == expected.gradients.keys()
    different = [name for name, grad in expected.gradients.items() if not torch.equal(found.gradients[name], grad)]
    assert not different


FAMILIES = {
    "internlm": {},
    "internlm2": {"embed_grad_scale": 0.1},
    "internlm3": {"norm_head": True},
    "llama": {"kv_heads": 4},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_captured_decoder_has_the_bits_of_autograd_for_any_documents(family: str, dtype: torch.dtype) -> None:
    model = decoder(family, dtype, **FAMILIES[family])
    graph = capture(model, token_loss, pack())
    for batch in (pack((24, 24), seed=1), pack((10, 20, 5, 13), seed=2), pack((1,) * NUM_TOKENS, seed=3)):
        assert_equal_bits(run_micro_batch(graph, parameters(model), batch), autograd(model, token_loss, batch))


def test_a_model_captured_on_meta_runs_with_the_bits_of_autograd() -> None:
    model = decoder()
    graph = capture(model, token_loss, pack())
    on_meta = capture(meta_decoder(decoder_config()), token_loss, pack())
    assert str(on_meta) == str(graph)
    assert [tuple(map(str, r.module.graph.nodes)) for r in on_meta.regions] == [
        tuple(map(str, r.module.graph.nodes)) for r in graph.regions
    ]


def test_a_tied_embedding_a_frozen_parameter_and_a_weighted_loss_have_the_bits_of_autograd() -> None:
    torch.manual_seed(0)
    model, batch = Tied(), masked_batch()
    graph = capture(model, masked_loss, batch)
    assert_equal_bits(run_micro_batch(graph, parameters(model), batch), autograd(model, masked_loss, batch))
    assert graph.parameters == tuple(name for name, _ in model.named_parameters())
    assert set(graph.parameters) - set(graph.gradients) == {"scale", "unused.weight", "unused.bias"}
    assert "scale" not in graph.constants  # what is frozen is gathered like the rest


def test_a_model_without_layers_is_one_region_and_has_the_bits_of_autograd() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 4)), torch.randn(5, 8)
    graph = capture(model, mean_square, batch)
    assert [call.phase for call in graph.calls] == ["loss"]
    assert_equal_bits(run_micro_batch(graph, parameters(model), batch), autograd(model, mean_square, batch))


def test_every_layer_is_a_region_also_the_only_one_of_its_kind() -> None:
    graph = capture(Stack(), mean_square, torch.randn(5, 8))
    assert [call.name for call in graph.calls if call.phase == "fwd"] == [f"fwd.layers.{n}" for n in range(3)]
    first, second, third = (call.region.name for call in graph.calls if call.phase == "bwd")
    assert first == second != third  # the last backward has no gradient to hand on


class Chosen(nn.Module):
    """No ModuleList; the user marks what repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    @torch.compiler.nested_compile_region
    def block(self, x: Tensor, weight: Tensor) -> Tensor:
        return x + (x @ weight).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.block(x * self.first.bias, self.first.weight), self.second.weight)


def test_what_the_user_marks_becomes_a_region() -> None:
    torch.manual_seed(0)
    model, batch = Chosen(), torch.randn(5, 8)
    graph = capture(model, mean_square, batch)
    assert [call.region.name for call in graph.calls] == ["fwd0", "fwd1", "fwd1", "loss2", "bwd3", "bwd3", "bwd4"]
    assert_equal_bits(run_micro_batch(graph, parameters(model), batch), autograd(model, mean_square, batch))


class WithoutParameters(nn.Linear):
    @torch.compiler.nested_compile_region
    def block(self, x: Tensor) -> Tensor:
        return x + x.sin() * x.exp()

    def forward(self, input: Tensor) -> Tensor:
        return self.block(self.block(super().forward(input)))


def test_layers_without_parameters_keep_their_values_apart() -> None:
    torch.manual_seed(0)
    model, batch = WithoutParameters(8, 8), torch.randn(5, 8)
    graph = capture(model, mean_square, batch)
    assert [call.name for call in graph.calls if "glue" in call.name] == [
        "fwd.glue", "fwd.glue#2", "loss.glue", "bwd.glue", "bwd.glue#2",
    ]  # fmt: skip
    assert_equal_bits(run_micro_batch(graph, parameters(model), batch), autograd(model, mean_square, batch))


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_dropout_draws_what_autograd_draws_and_is_never_drawn_again(recompute: Any) -> None:
    model, batch = Stack(), torch.randn(5, 8)
    graph = capture(model, mean_square, batch, recompute=recompute)
    torch.manual_seed(1)
    found = run_micro_batch(graph, parameters(model), batch)
    torch.manual_seed(1)
    assert_equal_bits(found, autograd(model, mean_square, batch))


def test_a_transformers_llama_is_captured_with_its_layers_as_regions() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=97, num_hidden_layers=4, use_cache=False, **shape)
    model = transformers.LlamaForCausalLM(config)
    batch = dict.fromkeys(("input_ids", "labels"), torch.randint(97, (2, 12)))

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss

    graph = capture(model, loss_fn, batch)
    assert len(graph.regions) == 5
    found, expected = run_micro_batch(graph, parameters(model), batch), autograd(model, loss_fn, batch)
    assert found.loss_sum.item() == expected.loss_sum.item()
    for name, gradient in expected.gradients.items():  # transformers takes another attention mask while it is traced
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-5, atol=1e-7)


def test_capture_leaves_the_model_as_it_was() -> None:
    model = decoder()
    forward, before = Layer.forward, {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    capture(model, token_loss, pack())
    assert Layer.forward is forward
    assert all(id(p) == before[name][0] and torch.equal(p, before[name][1]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_of_another_shape_is_refused() -> None:
    model, batch = decoder(), pack()
    graph = capture(model, token_loss, batch)
    longer = type(batch)(batch.tokens, batch.labels, batch.positions, pad_pieces(batch.cu_seqlens, 60))
    with pytest.raises(UsageError, match=r"batch.cu_seqlens is torch.int32 \(60,\), .* torch.int32 \(49,\)"):
        run_micro_batch(graph, parameters(model), longer)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.sum() > 0:
            y = y * 2
        return y


@pytest.mark.parametrize("model", [Branching(), Stack(2, Branching)], ids=["model", "layer"])
def test_a_graph_break_is_named_with_its_line(model: nn.Module) -> None:
    with pytest.raises(CaptureError) as error:
        capture(model, mean_square, torch.randn(5, 8))
    line = Path(__file__).read_text().splitlines().index("        if y.sum() > 0:") + 1
    assert f"{__file__}:{line}: if y.sum() > 0:: " in str(error.value)
    assert "Data-dependent branching" in str(error.value)
    assert "graph.mode=hooks" in str(error.value)
    assert error.value.exit_code == 2


class Normalized(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.BatchNorm1d(8))


def test_a_forward_that_changes_a_buffer_is_refused() -> None:
    with pytest.raises(CaptureError, match="the forward pass changes 1.running_mean, 1.running_var, 1.num_batches"):
        capture(Normalized(), mean_square, torch.randn(5, 8))


def test_a_loss_that_is_no_scalar_or_has_no_gradient_is_refused() -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(CaptureError, match=r"a loss of shape \(5, 8\) that depends on 2 trained parameters"):
        capture(model, lambda model, x: model(x), torch.randn(5, 8))
    with pytest.raises(CaptureError, match=r"a loss of shape \(\) that depends on 0 trained parameters"):
        capture(model, lambda model, x: x.sum(), torch.randn(5, 8, requires_grad=True))
