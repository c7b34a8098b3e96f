"""models: the kernels behind packed attention. models/attention.py chooses one and wraps it as an op.

Each kernel has its own backward, from what the forward hands on: the autograd engine takes no part.

Legend: P packed tokens, N query heads, K key/value heads (K divides N), H head size, D pieces; in a run of equal
pieces: B pieces of length L.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby, pairwise
from math import inf
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Qkv = tuple[Tensor, Tensor, Tensor]
"""q [P, N, H], k and v [P, K, H], or their gradients."""


class Pieces(NamedTuple):
    """How the pack is cut."""

    cu_seqlens: Tensor
    """int32 [D + 1], cumulative lengths, from 0 to P."""
    max_len: int
    """A bound on the length of a piece, in tokens."""


class Kernel(Protocol):
    """Causal softmax attention inside each piece, and its gradients."""

    def attend(self, qkv: Qkv, pieces: Pieces) -> tuple[Tensor, Tensor]:
        """out [P, N, H], and the logarithm of each softmax's denominator [N, P]."""
        ...

    def differentiate(self, grad_PNH: Tensor, qkv: Qkv, out_PNH: Tensor, logsumexp_NP: Tensor, pieces: Pieces) -> Qkv:
        """Gradients of q, k and v."""
        ...


def logsumexp_dtype(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


class FlashAttn:
    """FlashAttention-2 (arXiv:2307.08691) from the flash-attn package. Not yet run on a GPU."""

    def attend(self, qkv: Qkv, pieces: Pieces) -> tuple[Tensor, Tensor]:
        forward = import_module("flash_attn.flash_attn_interface")._flash_attn_varlen_forward
        out_PNH, logsumexp_NP, *_ = forward(*qkv, *_twice(pieces), 0.0, _scale(qkv[0]), causal=True)
        return out_PNH, logsumexp_NP

    def differentiate(self, grad_PNH: Tensor, qkv: Qkv, out_PNH: Tensor, logsumexp_NP: Tensor, pieces: Pieces) -> Qkv:
        backward = import_module("flash_attn.flash_attn_interface")._flash_attn_varlen_backward
        grads = _empty_like(qkv)
        backward(
            grad_PNH, *qkv, out_PNH, logsumexp_NP, *grads, *_twice(pieces), 0.0, _scale(qkv[0]), causal=True,
            window_size_left=-1, window_size_right=0, softcap=0.0, alibi_slopes=None, deterministic=False,
        )  # fmt: skip
        return grads


class TorchVarlen:
    """The FlashAttention that PyTorch ships: the ops below torch.nn.attention.varlen. Not yet run on a GPU."""

    def attend(self, qkv: Qkv, pieces: Pieces) -> tuple[Tensor, Tensor]:
        forward = torch.ops.aten._flash_attention_forward
        out_PNH, logsumexp_NP, *_ = forward(*qkv, *_twice(pieces), 0.0, True, return_debug_mask=False)
        return out_PNH, logsumexp_NP

    def differentiate(self, grad_PNH: Tensor, qkv: Qkv, out_PNH: Tensor, logsumexp_NP: Tensor, pieces: Pieces) -> Qkv:
        unread = torch.zeros(2, dtype=torch.uint64, device=grad_PNH.device), grad_PNH.new_empty(0)  # dropout's state
        backward = torch.ops.aten._flash_attention_backward
        return backward(grad_PNH, *qkv, out_PNH, logsumexp_NP, *_twice(pieces), 0.0, True, *unread)


BlockForward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(q [B, N, L, H], k and v [B, K, L, H]) -> out [B, N, L, H], logsumexp [B, N, L]"""

BlockBackward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Qkv]
"""(grad, q, k, v, out, logsumexp) -> gradients of q, k, v"""


@dataclass(frozen=True)
class ByRuns:
    """Applies a kernel for equal lengths once to each run of neighbouring pieces of equal length.

    Long documents are cut into many equal pieces, so the runs are few. Reads cu_seqlens on the host: free on the CPU, a
    synchronization elsewhere.
    """

    forward: BlockForward
    backward: BlockBackward

    def attend(self, qkv: Qkv, pieces: Pieces) -> tuple[Tensor, Tensor]:
        q = qkv[0]
        out_PNH = q.new_empty(q.shape)
        logsumexp_NP = q.new_empty((q.shape[1], q.shape[0]), dtype=logsumexp_dtype(q))
        for span, num_pieces in _spans(pieces.cu_seqlens):
            out, logsumexp = self.forward(*(_block(x[span], num_pieces) for x in qkv))
            out_PNH[span] = _flat(out)
            logsumexp_NP[:, span] = logsumexp.transpose(0, 1).flatten(1)
        return out_PNH, logsumexp_NP

    def differentiate(self, grad_PNH: Tensor, qkv: Qkv, out_PNH: Tensor, logsumexp_NP: Tensor, pieces: Pieces) -> Qkv:
        grads = _empty_like(qkv)
        for span, num_pieces in _spans(pieces.cu_seqlens):
            logsumexp = logsumexp_NP[:, span].unflatten(1, (num_pieces, -1)).transpose(0, 1)
            grad, q, k, v, out = (_block(x[span], num_pieces) for x in (grad_PNH, *qkv, out_PNH))
            for whole, part in zip(grads, self.backward(grad, q, k, v, out, logsumexp), strict=True):
                whole[span] = _flat(part)
        return grads


def torch_cpu() -> ByRuns:
    """The kernel behind scaled_dot_product_attention on the CPU."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return ByRuns(lambda *qkv: forward(*qkv, 0.0, True), lambda *saved: backward(*saved, 0.0, True))


def formula() -> ByRuns:
    """The formula, with all scores of a piece in memory. Runs anywhere. Not yet run on a GPU."""
    return ByRuns(_formula, _formula_backward)


def equal_runs(cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """[0, 4, 8, 11, 11] -> [(2, 4), (1, 3)]: (number of pieces, length of each), in order; empty pieces are skipped."""
    lengths = [stop - start for start, stop in pairwise(cu_seqlens.tolist()) if stop > start]
    return [(len(list(run)), length) for length, run in groupby(lengths)]


def _spans(cu_seqlens: Tensor) -> Iterator[tuple[slice, int]]:
    """The tokens of each run, and the number of its pieces."""
    start = 0
    for num_pieces, length in equal_runs(cu_seqlens):
        stop = start + num_pieces * length
        yield slice(start, stop), num_pieces
        start = stop


def _block(x_PNH: Tensor, num_pieces: int) -> Tensor:
    """[B * L, N, H] -> [B, N, L, H]"""
    return x_PNH.unflatten(0, (num_pieces, -1)).transpose(1, 2)


def _flat(x_BNLH: Tensor) -> Tensor:
    """[B, N, L, H] -> [B * L, N, H]"""
    return x_BNLH.transpose(1, 2).flatten(0, 1)


def _formula(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    scores_BNLL, _, v_BNLH = _scores(q, k, v)
    logsumexp_BNL = scores_BNLL.logsumexp(-1)
    return (scores_BNLL - logsumexp_BNL[..., None]).exp().matmul(v_BNLH).to(q.dtype), logsumexp_BNL


def _formula_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, logsumexp_BNL: Tensor) -> Qkv:
    """Appendix B.2 of FlashAttention (arXiv:2205.14135)."""
    scores_BNLL, k_BNLH, v_BNLH = _scores(q, k, v)
    grad_BNLH = grad.to(scores_BNLL.dtype)
    weights_BNLL = (scores_BNLL - logsumexp_BNL[..., None]).exp()
    mean_BNL1 = (grad_BNLH * out).sum(-1, keepdim=True)
    grad_scores_BNLL = weights_BNLL * (grad_BNLH.matmul(v_BNLH.mT) - mean_BNL1) * _scale(q)
    per_head = grad_scores_BNLL.mT.matmul(q.to(scores_BNLL.dtype)), weights_BNLL.mT.matmul(grad_BNLH)
    grad_k, grad_v = (x.unflatten(1, (k.shape[1], -1)).sum(2).to(k.dtype) for x in per_head)
    return grad_scores_BNLL.matmul(k_BNLH).to(q.dtype), grad_k, grad_v


def _scores(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Masked scores [B, N, L, L] in at least fp32, and k and v repeated for every query head."""
    dtype, length = logsumexp_dtype(q), q.shape[-2]
    k_BNLH, v_BNLH = (x.to(dtype).repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    return (q.to(dtype).matmul(k_BNLH.mT) * _scale(q)).masked_fill(later, -inf), k_BNLH, v_BNLH


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


def _empty_like(qkv: Qkv) -> Qkv:
    """Contiguous, whatever the strides of q, k and v."""
    q, k, v = (x.new_empty(x.shape) for x in qkv)
    return q, k, v


def _twice(pieces: Pieces) -> tuple[Tensor, Tensor, int, int]:
    """The pieces as varlen kernels want them: of the queries and of the keys."""
    return pieces.cu_seqlens, pieces.cu_seqlens, pieces.max_len, pieces.max_len
