"""models: one decoder for every family, plain torch.nn, no ranks.

Takes an Architecture (models/families.py) and hands on a module that maps a packed micro-batch to logits. A pack has
no batch dim: documents lie one after the other, `cu_seqlens` says where each attention piece begins and ends.

Legend: P packed tokens, E hidden, N query heads, K key/value heads, M = N + K, H head size, T positions of the
RoPE table, F feed-forward width, V vocabulary, D pieces.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo_engine.config.schema import ModelConfig
from internevo_engine.models.attention import packed_attention
from internevo_engine.models.families import Architecture, architecture


class Decoder(nn.Module):
    """Pre-norm transformer decoder with RoPE (arXiv:2104.09864), grouped queries (2305.13245) and SwiGLU (2002.05202).

    `seq_len` bounds the length of a piece, in tokens. Built under `torch.device("meta")` it needs
    `to_empty(device=...)`, values for its parameters and `rope.fill()`: models/initialize.py does that.
    """

    def __init__(self, model: ModelConfig, seq_len: int) -> None:
        super().__init__()
        arch = architecture(model)
        self.embedding = Embedding(arch)
        self.rope = Rope(arch, seq_len)
        self.layers = nn.ModuleList(Layer(arch, seq_len) for _ in range(arch.layers))
        self.norm = nn.RMSNorm(arch.hidden, arch.norm_eps)
        self.head = Head(arch)

    def forward(self, tokens_P: Tensor, positions_P: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Logits [P, V] of the next token.

        tokens_P: int64 ids below V. positions_P: int64, below seq_len, counted from 0 in each piece.
        cu_seqlens: int32 [D + 1], cumulative lengths of the pieces, from 0 to P; none is longer than seq_len.
        """
        x_PE = self.embedding(tokens_P)
        cos_P1H, sin_P1H = self.rope(positions_P)
        for layer in self.layers:
            x_PE = layer(x_PE, cos_P1H, sin_P1H, cu_seqlens)
        return self.head(self.norm(x_PE), self.embedding.weight)


class Layer(nn.Module):
    """One decoder layer [P, E] -> [P, E]: the block that repeats."""

    def __init__(self, arch: Architecture, seq_len: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(arch.hidden, arch.norm_eps)
        self.attention = Attention(arch, seq_len)
        self.ffn_norm = nn.RMSNorm(arch.hidden, arch.norm_eps)
        self.feed_forward = FeedForward(arch)

    def forward(self, x_PE: Tensor, cos_P1H: Tensor, sin_P1H: Tensor, cu_seqlens: Tensor) -> Tensor:
        x_PE = x_PE + self.attention(self.attention_norm(x_PE), cos_P1H, sin_P1H, cu_seqlens)
        return x_PE + self.feed_forward(self.ffn_norm(x_PE))


class Attention(nn.Module):
    """Causal attention inside each piece, with one fused projection; rows of wqkv are queries, keys, values."""

    def __init__(self, arch: Architecture, seq_len: int) -> None:
        super().__init__()
        self.head_counts = (arch.heads, arch.kv_heads)
        self.head_dim = arch.head_dim
        self.max_len = seq_len
        self.wqkv = nn.Linear(arch.hidden, arch.qkv_rows, bias=arch.qkv_bias)
        self.wo = nn.Linear(arch.hidden, arch.hidden, bias=arch.o_bias)

    def forward(self, x_PE: Tensor, cos_P1H: Tensor, sin_P1H: Tensor, cu_seqlens: Tensor) -> Tensor:
        heads, kv_heads = self.head_counts
        qkv = self.wqkv(x_PE).unflatten(-1, (-1, self.head_dim))
        qk_PMH, v_PKH = qkv.split((heads + kv_heads, kv_heads), dim=1)
        q_PNH, k_PKH = rotate(qk_PMH, cos_P1H, sin_P1H).split((heads, kv_heads), dim=1)
        return self.wo(packed_attention(q_PNH, k_PKH, v_PKH, cu_seqlens, self.max_len).flatten(1))


class FeedForward(nn.Module):
    """w2(silu(gate) * up); rows of w13 are gate (w1), then up (w3)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.w13 = nn.Linear(arch.hidden, 2 * arch.ffn, bias=False)
        self.w2 = nn.Linear(arch.ffn, arch.hidden, bias=False)

    def forward(self, x_PE: Tensor) -> Tensor:
        gate_PF, up_PF = self.w13(x_PE).chunk(2, dim=-1)
        return self.w2(F.silu(gate_PF) * up_PF)


class Rope(nn.Module):
    """Tables of cos and sin for seq_len positions, for the rotate-half order: dim i turns with dim i + H/2.

    Computed in fp32 and rounded to the dtype of the module; not part of its state.
    """

    cos: Tensor
    """[T, H]"""
    sin: Tensor
    """[T, H]; the first half of each row is negated, see rotate"""

    def __init__(self, arch: Architecture, seq_len: int) -> None:
        super().__init__()
        self.base = arch.rope_base_at(seq_len)
        for name in ("cos", "sin"):
            self.register_buffer(name, torch.empty(seq_len, arch.head_dim), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the tables, on the CPU so that every device gets the same bits. Does nothing on meta."""
        seq_len, head_dim = self.cos.shape
        exponents = torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float32) / head_dim
        angles = torch.outer(torch.arange(seq_len, device="cpu", dtype=torch.float32), self.base**-exponents)
        cos, sin = angles.cos(), angles.sin()
        self.cos.copy_(torch.cat((cos, cos), dim=-1))
        self.sin.copy_(torch.cat((-sin, sin), dim=-1))

    def forward(self, positions_P: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos[positions_P].unsqueeze(1), self.sin[positions_P].unsqueeze(1)


def rotate(x_PMH: Tensor, cos_P1H: Tensor, sin_P1H: Tensor) -> Tensor:
    """Turn each pair (i, i + H/2) by its angle. Rolling by H/2 swaps the halves; the sin table holds their signs."""
    return torch.addcmul(x_PMH * cos_P1H, x_PMH.roll(x_PMH.shape[-1] // 2, dims=-1), sin_P1H)


class Embedding(nn.Embedding):
    """Token embedding whose gradient is multiplied by embed_grad_scale (GLM-130B, arXiv:2210.02414)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch.vocab, arch.hidden)
        self.grad_scale = arch.embed_grad_scale

    def forward(self, input: Tensor) -> Tensor:
        return ScaleGradient.apply(super().forward(input), self.grad_scale)


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number. GLM's s*x + (1-s)*x.detach() would round the value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.scale, None


class Head(nn.Module):
    """Projection to logits; with norm_head its rows have length 1 (Baichuan 2, arXiv:2309.10305).

    Tied (arXiv:1608.05859) it has no weight and uses the embedding's, which each call gives it: a parameter under two
    names would fall apart where a module moves to another device.
    """

    weight: nn.Parameter | None

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.norm_rows = arch.norm_head
        own = None if arch.tie_embeddings else nn.Parameter(torch.empty(arch.vocab, arch.hidden))
        self.register_parameter("weight", own)

    def forward(self, x_PE: Tensor, embedding_VE: Tensor) -> Tensor:
        weight_VE = embedding_VE if self.weight is None else self.weight
        return F.linear(x_PE, F.normalize(weight_VE, dim=-1) if self.norm_rows else weight_VE)
