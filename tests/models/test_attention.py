import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from internevo_engine.models.attention import BACKENDS, Backend, Facts, choose, packed_attention, pad_pieces
from internevo_engine.models.attention_kernels import Pieces, equal_runs


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


def test_the_formula_and_its_gradients_match_a_dense_mask() -> None:
    lengths, inputs = [5, 4, 4, 1, 1, 7], qkv(22, 2, torch.float64)
    pieces = Pieces(cumulative(lengths), 7)
    expected = dense_attention(*inputs, pieces.cu_seqlens)
    grad = torch.randn_like(expected)
    q, k, v = (x.detach() for x in inputs)
    kernel = BACKENDS[-1].kernel
    out, logsumexp = kernel.attend((q, k, v), pieces)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(
        kernel.differentiate(grad, (q, k, v), out, logsumexp, pieces), torch.autograd.grad(expected, inputs, grad)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_attention_equals_scaled_dot_product_attention_bit_for_bit(dtype: torch.dtype) -> None:
    inputs = qkv(48, 2, dtype)
    out = packed_attention(*inputs, cumulative([24, 24]), 24)
    q, k, v = (x.unflatten(0, (2, 24)).transpose(1, 2) for x in inputs)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(0, 1)
    grad = torch.randn_like(out)
    assert torch.equal(out, expected)
    both = (torch.autograd.grad(x, inputs, grad) for x in (out, expected))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*both, strict=True))


def test_padded_pieces_change_no_bit() -> None:
    inputs, cu_seqlens = qkv(22, 2, torch.float32), cumulative([5, 4, 4, 1, 1, 7])
    padded = pad_pieces(cu_seqlens, 23)
    assert padded.shape == (23,)
    assert padded.dtype == torch.int32
    outs = [packed_attention(*inputs, pieces, 7) for pieces in (cu_seqlens, padded)]
    grad = torch.randn_like(outs[0])
    plain, with_padding = ([out, *torch.autograd.grad(out, inputs, grad)] for out in outs)
    assert all(torch.equal(x, y) for x, y in zip(plain, with_padding, strict=True))


def test_packed_attention_is_an_op_that_torch_can_capture() -> None:
    inputs = (*qkv(22, 2, torch.float32), cumulative([5, 4, 4, 1, 1, 7]), 7)
    torch.library.opcheck(torch.ops.internevo.packed_attention.default, inputs)


def test_neighbouring_pieces_of_equal_length_form_one_run() -> None:
    assert equal_runs(cumulative([4, 4, 0, 3, 4, 0, 0])) == [(2, 4), (1, 3), (1, 4)]


A100, V100 = (8, 0), (7, 0)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (Facts("cuda", A100, torch.bfloat16, flash_attn=True), "flash-attn"),
        (Facts("cuda", A100, torch.bfloat16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", A100, torch.float16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", (12, 0), torch.bfloat16, flash_attn=False), "torch-varlen"),
        (Facts("cuda", A100, torch.float32, flash_attn=True), "formula"),
        (Facts("cuda", V100, torch.float16, flash_attn=True), "formula"),
        (Facts("cpu", (0, 0), torch.bfloat16, flash_attn=True), "torch-cpu"),
    ],
)
def test_the_machine_chooses_the_kernel(facts: Facts, name: str) -> None:
    assert choose(facts).name == name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_every_kernel_matches_a_dense_mask_on_a_gpu(backend: Backend) -> None:
    if backend.name == "torch-cpu":
        pytest.skip("not for a GPU")
    if backend.name == "flash-attn":
        pytest.importorskip("flash_attn")
    lengths, inputs = [100, 100, 37, 1], qkv(238, 2, torch.bfloat16, "cuda")
    pieces = Pieces(pad_pieces(cumulative(lengths), 9).cuda(), 128)
    q, k, v = (x.detach() for x in inputs)
    wide = [x.float().requires_grad_() for x in (q, k, v)]
    out, logsumexp = backend.kernel.attend((q, k, v), pieces)
    expected = dense_attention(*wide, pieces.cu_seqlens)
    grad = torch.randn_like(expected)
    found = backend.kernel.differentiate(grad.to(q.dtype), (q, k, v), out, logsumexp, pieces)
    close = {"atol": 2e-2, "rtol": 2e-2, "check_dtype": False}  # bf16 keeps 8 bits
    torch.testing.assert_close(out, expected, **close)
    torch.testing.assert_close(found, torch.autograd.grad(expected, wide, grad), **close)
