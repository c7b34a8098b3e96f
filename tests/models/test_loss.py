import math
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import internevo_engine.models.loss as loss_module
from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import summed_cross_entropy, token_loss, token_scores


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    labels: Tensor
    positions: Tensor
    cu_seqlens: Tensor


def batch(labels: Tensor) -> Batch:
    num_tokens = len(labels)
    tokens = torch.randint(50, (num_tokens,), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, labels, torch.arange(num_tokens), torch.tensor([0, num_tokens], dtype=torch.int32))


def decoder() -> torch.nn.Module:
    shape = {"vocab": 50, "layers": 1, "hidden": 16, "heads": 2, "ffn": 24}
    return build(
        ModelConfig.model_validate({"family": "internlm2", **shape}), 32, torch.float32, torch.device("cpu"), 0
    )


def logits_and_labels(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(1000, (64,), generator=generator)
    labels[::5] = -100
    return (3 * torch.randn(64, 1000, generator=generator)).to(dtype).requires_grad_(), labels


def test_loss_and_count_leave_out_ignored_labels() -> None:
    labels = torch.arange(20)
    labels[3:9] = -100
    model, data = decoder(), batch(labels)
    total, count = token_loss(model, data)
    kept = labels != -100
    expected = F.cross_entropy(model(data.tokens, data.positions, data.cu_seqlens)[kept], labels[kept])
    assert (count.item(), count.dtype, total.dtype) == (14, torch.int64, torch.float32)
    assert (total / count).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_untrained_model_knows_nothing() -> None:
    total, count = token_loss(decoder(), batch(torch.arange(20)))
    assert (total / count).item() == pytest.approx(math.log(50), rel=0.02)


def test_a_batch_without_counted_tokens_has_loss_and_gradients_zero() -> None:
    model = decoder()
    total, count = token_loss(model, batch(torch.full((20,), -100)))
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_chunks_give_the_loss_and_gradient_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = logits_and_labels(torch.float32)
    whole = F.cross_entropy(logits, labels, reduction="sum")
    monkeypatch.setattr(loss_module, "LOGITS_AT_ONCE", 7 * 1000 + 1)
    chunked = summed_cross_entropy(logits, labels)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, logits), torch.autograd.grad(whole, logits))


def test_16_bit_logits_are_summed_in_fp32() -> None:
    logits, labels = logits_and_labels(torch.bfloat16)
    expected = F.cross_entropy(logits.double(), labels, reduction="sum").item()
    assert summed_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    assert F.cross_entropy(logits, labels, reduction="sum").item() != pytest.approx(expected, rel=1e-4)


def test_scores_are_loss_hits_and_count_of_the_counted_tokens() -> None:
    labels = torch.tensor([3, -100, 1, 0])
    logits = torch.eye(4)[[3, 2, 0, 0]] * 5
    scores = token_scores(lambda tokens, positions, cu_seqlens: logits, batch(labels))
    losses = -torch.log_softmax(logits, 1)[[0, 2, 3], labels[labels >= 0]]
    assert scores.tolist() == pytest.approx([losses.sum().item(), 2, 3])
