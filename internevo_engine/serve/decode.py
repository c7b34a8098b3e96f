"""serve: the decoder one token at a time, with a cache of keys and values. Between models/decoder.py and generate.py.

The same submodules and weights as in training; only attention is written a second time, over cached keys. The oracle is
Decoder.forward over the whole sequence.

Legend: B rows (sequences), S new tokens of each, T slots of the cache, E hidden, N query heads, K key/value heads,
M = N + K, H head size, V vocabulary, L layers.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from internevo_engine.models.decoder import Attention, Decoder, Layer, rotate


class Cache:
    """Keys and values of what a batch of sequences has read. A token's slot is its position.

    So rows of different lengths need no offsets: a query sees the slots up to its own position, and what padding left
    behind a row's end is overwritten before anything looks there.
    """

    def __init__(self, decoder: Decoder, num_rows: int, num_slots: int) -> None:
        """Room for `num_slots` tokens a row, at most the decoder's seq_len."""
        layers, weight = _layers(decoder), decoder.embedding.weight
        attention = layers[0].attention
        _, kv_heads = attention.head_counts
        shape = (len(layers), num_rows, num_slots, kv_heads, attention.head_dim)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        """[L, B, T, K, H]"""
        self.values = torch.zeros_like(self.keys)
        """[L, B, T, K, H]"""
        self.lengths_B = torch.zeros(num_rows, dtype=torch.int64, device=weight.device)
        """Tokens that each row holds."""

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]
        self.lengths_B = self.lengths_B[rows]


@torch.no_grad()
def extend(decoder: Decoder, cache: Cache, tokens_BS: Tensor, counts_B: Tensor) -> Tensor:
    """Read counts_B new tokens of each row, padded to S behind; logits [B, V] of the token after the last of them."""
    num_new = tokens_BS.shape[1]
    num_slots = int(cache.lengths_B.max()) + num_new
    assert num_slots <= cache.keys.shape[2], f"{num_slots} tokens in a cache of {cache.keys.shape[2]} slots"
    steps_S, slots_T = (torch.arange(n, device=tokens_BS.device) for n in (num_new, num_slots))
    positions_BS = cache.lengths_B[:, None] + steps_S
    sees_B1ST = (slots_T <= positions_BS[..., None]).unsqueeze(1)
    x_BSE = decoder.embedding(tokens_BS)
    cos_B1SH, sin_B1SH = decoder.rope(positions_BS)
    for layer, keys_BTKH, values_BTKH in zip(_layers(decoder), cache.keys, cache.values, strict=True):
        q_BNSH, k_BKSH, v_BKSH = _projected(layer.attention, layer.attention_norm(x_BSE), cos_B1SH, sin_B1SH)
        _store(keys_BTKH, k_BKSH, positions_BS)
        _store(values_BTKH, v_BKSH, positions_BS)
        seen = (x_BTKH[:, :num_slots].transpose(1, 2) for x_BTKH in (keys_BTKH, values_BTKH))
        out_BNSH = F.scaled_dot_product_attention(q_BNSH, *seen, attn_mask=sees_B1ST, enable_gqa=True)
        x_BSE = x_BSE + layer.attention.wo(out_BNSH.transpose(1, 2).flatten(2))
        x_BSE = x_BSE + layer.feed_forward(layer.ffn_norm(x_BSE))
    cache.lengths_B += counts_B
    last_BE = x_BSE[torch.arange(len(x_BSE), device=x_BSE.device), counts_B - 1]
    return decoder.head(decoder.norm(last_BE), decoder.embedding.weight)


def _layers(decoder: Decoder) -> Sequence[Layer]:
    return cast(Sequence[Layer], decoder.layers)


def _projected(attention: Attention, x_BSE: Tensor, cos_B1SH: Tensor, sin_B1SH: Tensor) -> tuple[Tensor, ...]:
    """q [B, N, S, H], k and v [B, K, S, H], turned by their positions."""
    heads, kv_heads = attention.head_counts
    qkv_BMSH = attention.wqkv(x_BSE).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
    qk_BMSH, v_BKSH = qkv_BMSH.split((heads + kv_heads, kv_heads), dim=1)
    return *rotate(qk_BMSH, cos_B1SH, sin_B1SH).split((heads, kv_heads), dim=1), v_BKSH


def _store(cache_BTKH: Tensor, new_BKSH: Tensor, positions_BS: Tensor) -> None:
    rows_B1 = torch.arange(len(positions_BS), device=positions_BS.device)[:, None]
    cache_BTKH[rows_B1, positions_BS] = new_BKSH.transpose(1, 2)
