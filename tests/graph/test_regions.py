import pytest
import torch
from torch import Tensor, nn

from internevo_engine.graph.capture import capture
from internevo_engine.graph.regions import compile_ahead, compile_regions
from internevo_engine.graph.run import run_micro_batch
from internevo_engine.models.loss import token_loss
from tests.graph.models import Stack, decoder, mean_square, pack


def test_eager_regions_have_the_bits_of_the_graph() -> None:
    model, batch = decoder(), pack((10, 20, 5, 13), seed=2)
    graph, parameters = capture(model, token_loss, pack()), dict(model.named_parameters())
    compiled = compile_regions(graph, "eager")
    assert list(compiled) == ["fwd0", "fwd1", "loss2", "bwd3", "bwd4"]
    found, expected = (run_micro_batch(graph, parameters, batch, regions) for regions in (compiled, None))
    assert all(torch.equal(found.gradients[name], grad) for name, grad in expected.gradients.items())


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_inductor_compiles_each_region_once_and_finds_them_again(
    recompute: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, batch = decoder(layers=2), pack((10, 20, 5, 13), seed=2)
    parameters = dict(model.named_parameters())
    graph = capture(model, token_loss, pack(), recompute=recompute)
    compiled = compile_regions(graph, "inductor")
    assert compile_ahead(capture(model, token_loss, pack(), recompute=recompute).regions, 1) == 5
    found, expected = (run_micro_batch(graph, parameters, batch, regions) for regions in (compiled, None))
    torch.testing.assert_close(found.loss_sum, expected.loss_sum, rtol=1e-6, atol=0)
    for name, gradient in expected.gradients.items():
        # fused sums round in another order; relative to the largest entry, as small entries are sums that cancel
        assert (found.gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max()


class Cached(nn.Module):
    """Its decomposed cat of an empty tensor and a turned one would have the strides of the latter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.cat([x.new_empty(0), self.linear(x).mT], dim=-1)
        return turned.exp().mT


def test_inductor_keeps_the_strides_of_what_one_region_hands_another() -> None:
    model, x = Stack(2, Cached), torch.ones(4, 8)
    graph, parameters = capture(model, mean_square, x), dict(model.named_parameters())
    found = run_micro_batch(graph, parameters, x, compile_regions(graph, "inductor"))
    expected = run_micro_batch(graph, parameters, x)
    torch.testing.assert_close(found.gradients, expected.gradients)


def test_forked_processes_compile_ahead(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    graph = capture(decoder(layers=2), token_loss, pack())
    assert compile_ahead(graph.regions, 2) == 0
    assert compile_ahead(graph.regions, 2) == 5
    assert compile_ahead(graph.regions, 1) == 5
