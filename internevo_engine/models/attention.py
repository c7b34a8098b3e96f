"""models: attention over a pack of documents, and the table of kernels that can do it.

Called by models/decoder.py once a layer. Every row computes the same function; `choose` takes the first one that the
machine can run, so the decoder never asks where it is. From outside it is one opaque op with a backward op of its own
and shapes that don't depend on the documents, so a graph captured once holds for every pack.

Legend: P packed tokens, N query heads, K key/value heads (K divides N), H head size, D pieces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from internevo_engine.models.attention_kernels import (
    FlashAttn,
    Kernel,
    Pieces,
    TorchVarlen,
    formula,
    logsumexp_dtype,
    torch_cpu,
)


def packed_attention(q_PNH: Tensor, k_PKH: Tensor, v_PKH: Tensor, cu_seqlens: Tensor, max_len: int) -> Tensor:
    """Causal softmax attention inside each piece of the pack; no token attends to another piece. Returns [P, N, H].

    cu_seqlens: int32 [D + 1], cumulative lengths of the pieces, from 0 to P. Pieces of length zero are skipped, so it
    can be padded: see `pad_pieces`. max_len: a bound on the length of a piece, in tokens; a number known beforehand, so
    that no kernel has to ask the device for the true maximum.
    """
    return _attention(q_PNH, k_PKH, v_PKH, cu_seqlens, max_len)[0]


def pad_pieces(cu_seqlens: Tensor, num_entries: int) -> Tensor:
    """Repeat the last entry until there are `num_entries`: packs of any documents get one shape, and the same bits."""
    return F.pad(cu_seqlens, (0, num_entries - len(cu_seqlens)), value=int(cu_seqlens[-1]))


@torch.library.custom_op("internevo::packed_attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
    """out [P, N, H] and the logarithm of each softmax's denominator [N, P]."""
    return _kernel(q.device, q.dtype).attend((q, k, v), Pieces(cu_seqlens, max_len))


@torch.library.custom_op("internevo::packed_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, cu_seqlens: Tensor, max_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    kernel = _kernel(q.device, q.dtype)
    return kernel.differentiate(grad, (q, k, v), out, logsumexp, Pieces(cu_seqlens, max_len))


@_attention.register_fake
def _attention_shapes(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=logsumexp_dtype(q))


@_attention_backward.register_fake
def _attention_backward_shapes(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp: Tensor, cu_seqlens: Tensor, max_len: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.max_len = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, ctx.max_len), None, None


_attention.register_autograd(_gradients, setup_context=_keep_for_backward)


@register_flop_formula(torch.ops.internevo.packed_attention)
def _attention_flops(
    q: torch.Size, k: torch.Size, v: torch.Size, cu_seqlens: torch.Size, max_len: int, **_: Any
) -> int:
    """Two matrix products over the causal half of the scores, as if every piece had the greatest length."""
    return 2 * q.numel() * max_len


@register_flop_formula(torch.ops.internevo.packed_attention_backward)
def _attention_backward_flops(grad: torch.Size, *inputs: Any, **_: Any) -> int:
    """Five matrix products: the scores again, and one gradient each for weights, q, k and v."""
    return 5 * grad.numel() * inputs[-1]


@dataclass(frozen=True)
class Facts:
    """What decides the choice of a kernel."""

    device: str
    """Device type: cpu, cuda."""
    capability: tuple[int, int]
    """CUDA compute capability; (0, 0) elsewhere."""
    dtype: torch.dtype
    flash_attn: bool
    """The package flash-attn is installed."""

    @property
    def runs_flash(self) -> bool:
        """FlashAttention kernels need A100 or newer and a 16-bit dtype."""
        return self.device == "cuda" and self.capability >= (8, 0) and self.dtype in (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """A row of the table: a kernel and where it runs."""

    name: str
    available: Callable[[Facts], bool]
    kernel: Kernel


BACKENDS = (
    Backend("flash-attn", lambda facts: facts.runs_flash and facts.flash_attn, FlashAttn()),
    Backend("torch-varlen", lambda facts: facts.runs_flash, TorchVarlen()),
    Backend("torch-cpu", lambda facts: facts.device == "cpu", torch_cpu()),
    Backend("formula", lambda facts: True, formula()),
)
"""Best first; the last one runs anywhere."""


def choose(facts: Facts) -> Backend:
    """The first row of BACKENDS that these facts allow."""
    return next(backend for backend in BACKENDS if backend.available(facts))


@cache
def _kernel(device: torch.device, dtype: torch.dtype) -> Kernel:
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return choose(Facts(device.type, capability, dtype, flash_attn=find_spec("flash_attn") is not None)).kernel
