"""interop: how one fused tensor of ours is cut into the tensors of others, and put together again.

The bottom of the room; interop/names.py says which layout belongs to which tensor. Each layout is a pair of inverse
functions on the first dim, the rows, so it serves weights [rows, E] and biases [rows] alike, and, on the meta device,
tells the shapes it expects.

Legend: N query heads, K key/value heads, G = N / K queries a group, H head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from internevo_engine.models.families import Architecture


@dataclass(frozen=True)
class Layout:
    """Two inverse functions."""

    split: Callable[[Tensor, Architecture], Sequence[Tensor]]
    """Ours to theirs."""
    join: Callable[[Sequence[Tensor], Architecture], Tensor]
    """Theirs to ours."""


def _split_qkv(wqkv: Tensor, arch: Architecture) -> Sequence[Tensor]:
    kv_rows = arch.kv_heads * arch.head_dim
    return wqkv.split((arch.heads * arch.head_dim, kv_rows, kv_rows))


def _concat(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    return torch.cat(tuple(parts))


def _to_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """RoPE's rotate-half order (dim i turns with i + H/2) to neighbours (dim 2i turns with 2i + 1), in every head."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _to_halves(rows: Tensor, head_dim: int) -> Tensor:
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _split_paired(wqkv: Tensor, arch: Architecture) -> Sequence[Tensor]:
    q, k, v = _split_qkv(wqkv, arch)
    return _to_pairs(q, arch.head_dim), _to_pairs(k, arch.head_dim), v


def _join_paired(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    q, k, v = parts
    return torch.cat((_to_halves(q, arch.head_dim), _to_halves(k, arch.head_dim), v))


def _group(parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    """q, k, v to one tensor in the order [K, G + 2, H]: the queries of a group, then its key, then its value."""
    grouped = [part.unflatten(0, (arch.kv_heads, -1, arch.head_dim)) for part in parts]
    return torch.cat(grouped, dim=1).flatten(0, 2)


def _ungroup(fused: Tensor, arch: Architecture) -> Sequence[Tensor]:
    queries = arch.heads // arch.kv_heads
    grouped = fused.unflatten(0, (arch.kv_heads, queries + 2, arch.head_dim))
    return [part.flatten(0, 2) for part in grouped.split((queries, 1, 1), dim=1)]


SAME = Layout(lambda ours, arch: (ours,), lambda theirs, arch: theirs[0])
QKV = Layout(_split_qkv, _concat)
"""Three tensors: queries, keys, values."""
QKV_PAIRED = Layout(_split_paired, _join_paired)
"""Three tensors, RoPE over neighbours: llama.cpp, and InternEvo's qk_interleaved."""
QKV_GROUPED = Layout(
    lambda ours, arch: (_group(_split_qkv(ours, arch), arch),),
    lambda theirs, arch: _concat(_ungroup(theirs[0], arch), arch),
)
"""InternLM2's fused wqkv."""
QKV_GROUPED_PAIRED = Layout(
    lambda ours, arch: (_group(_split_paired(ours, arch), arch),),
    lambda theirs, arch: _join_paired(_ungroup(theirs[0], arch), arch),
)
"""The same under InternEvo's qk_interleaved."""
GATE_UP = Layout(lambda ours, arch: ours.chunk(2), _concat)
"""Two tensors: gate (w1) and up (w3)."""
