import pytest
import torch
from torch import Tensor

from internevo_engine.models.attention import BACKENDS, Backend, Facts, choose, equal_runs, packed_attention


def cumulative(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def dense_attention(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int = 0) -> Tensor:
    """The obvious version: all scores of the pack, and a mask."""
    group = q_PNH.shape[1] // k_PKH.shape[1]
    k_PNH, v_PNH = k_PKH.repeat_interleave(group, dim=1), v_PKH.repeat_interleave(group, dim=1)
    positions = torch.arange(len(q_PNH), device=q_PNH.device)
    piece = torch.searchsorted(cu_seqlens.long(), positions, right=True)
    allowed = (piece[:, None] == piece[None, :]) & (positions[:, None] >= positions[None, :])
    scores_NPP = torch.einsum("pnh,snh->nps", q_PNH, k_PNH) / q_PNH.shape[-1] ** 0.5
    return torch.einsum("nps,snh->pnh", scores_NPP.masked_fill(~allowed, -torch.inf).softmax(-1), v_PNH)


def qkv(num_tokens: int, kv_heads: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(num_tokens, heads, 64) for heads in (4, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("lengths", [[12], [4, 4, 4], [5, 4, 4, 1, 1, 7], [1]])
def test_packed_attention_and_its_gradients_match_a_dense_mask(lengths: list[int], kv_heads: int) -> None:
    inputs = qkv(sum(lengths), kv_heads, torch.float64)
    out = packed_attention(*inputs, cumulative(lengths), max(lengths))
    expected = dense_attention(*inputs, cumulative(lengths))
    weights = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, weights), torch.autograd.grad(expected, inputs, weights)
    )


def test_neighbouring_pieces_of_equal_length_form_one_run() -> None:
    assert equal_runs(cumulative([4, 4, 3, 4])) == [(2, 4), (1, 3), (1, 4)]


A100, V100 = (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (Facts("cuda", A100, torch.bfloat16, flash_attn=True), "flash-attn"),
        (Facts("cuda", A100, torch.bfloat16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", A100, torch.float16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", (12, 0), torch.bfloat16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", A100, torch.float32, flash_attn=True), "sdpa"),
        (Facts("cuda", V100, torch.float16, flash_attn=True), "sdpa"),
        (Facts("cpu", (0, 0), torch.bfloat16, flash_attn=True), "sdpa"),
    ],
)
def test_the_machine_chooses_the_kernel(facts: Facts, name: str) -> None:
    assert choose(facts).name == name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_kernel_matches_a_dense_mask_on_a_gpu(backend: Backend) -> None:
    if backend.name == "flash-attn":
        pytest.importorskip("flash_attn")
    lengths, inputs = [100, 100, 37, 1], qkv(238, 2, torch.bfloat16, "cuda")
    out = backend.attend(*inputs, cumulative(lengths).cuda(), 128)
    expected = dense_attention(*(x.float() for x in inputs), cumulative(lengths).cuda())
    torch.testing.assert_close(out.float(), expected, atol=2e-2, rtol=2e-2)  # bf16 keeps 8 bits
