"""interop: what others call our parameters. One table a format, read in both directions.

Stands on interop/layouts.py; hands `moves(table, model)` to every reader and writer: for each parameter of ours, the
names and shapes of the tensors that it is made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from internevo_engine.config.schema import ModelConfig
from internevo_engine.interop.layouts import GATE_UP, QKV, QKV_GROUPED, QKV_PAIRED, SAME, Layout
from internevo_engine.models.families import architecture, parameters
from internevo_engine.plan.params import Param

Row = tuple[tuple[str, ...], Layout]
Table = Mapping[str, Row]
"""By our module: theirs, and how ours is cut into them. {} is the layer; .weight or .bias follows on both sides."""


def _one(name: str) -> Row:
    return (name,), SAME


HF_LLAMA: Table = {
    "embedding": _one("model.embed_tokens"),
    "layers.{}.attention_norm": _one("model.layers.{}.input_layernorm"),
    "layers.{}.attention.wqkv": (tuple(f"model.layers.{{}}.self_attn.{letter}_proj" for letter in "qkv"), QKV),
    "layers.{}.attention.wo": _one("model.layers.{}.self_attn.o_proj"),
    "layers.{}.ffn_norm": _one("model.layers.{}.post_attention_layernorm"),
    "layers.{}.feed_forward.w13": (("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"), GATE_UP),
    "layers.{}.feed_forward.w2": _one("model.layers.{}.mlp.down_proj"),
    "norm": _one("model.norm"),
    "head": _one("lm_head"),
}
"""Llama, InternLM3, and InternLM v1 (with biases)."""
HF_INTERNLM2: Table = {
    "embedding": _one("model.tok_embeddings"),
    "layers.{}.attention_norm": _one("model.layers.{}.attention_norm"),
    "layers.{}.attention.wqkv": (("model.layers.{}.attention.wqkv",), QKV_GROUPED),
    "layers.{}.attention.wo": _one("model.layers.{}.attention.wo"),
    "layers.{}.ffn_norm": _one("model.layers.{}.ffn_norm"),
    "layers.{}.feed_forward.w13": (tuple(f"model.layers.{{}}.feed_forward.{w}" for w in ("w1", "w3")), GATE_UP),
    "layers.{}.feed_forward.w2": _one("model.layers.{}.feed_forward.w2"),
    "norm": _one("model.norm"),
    "head": _one("output"),
}
GGUF_LLAMA: Table = {
    "embedding": _one("token_embd"),
    "layers.{}.attention_norm": _one("blk.{}.attn_norm"),
    "layers.{}.attention.wqkv": (("blk.{}.attn_q", "blk.{}.attn_k", "blk.{}.attn_v"), QKV_PAIRED),
    "layers.{}.attention.wo": _one("blk.{}.attn_output"),
    "layers.{}.ffn_norm": _one("blk.{}.ffn_norm"),
    "layers.{}.feed_forward.w13": (("blk.{}.ffn_gate", "blk.{}.ffn_up"), GATE_UP),
    "layers.{}.feed_forward.w2": _one("blk.{}.ffn_down"),
    "norm": _one("output_norm"),
    "head": _one("output"),
}
INTERNEVO_V1: Table = {
    "embedding": _one("embedding"),
    "layers.{}.attention_norm": _one("blocks.{}.norm1"),
    "layers.{}.attention.wqkv": _one("blocks.{}.mixer.Wqkv"),
    "layers.{}.attention.wo": _one("blocks.{}.mixer.out_proj"),
    "layers.{}.ffn_norm": _one("blocks.{}.norm2"),
    "layers.{}.feed_forward.w13": (("blocks.{}.mlp.w1", "blocks.{}.mlp.w3"), GATE_UP),
    "layers.{}.feed_forward.w2": _one("blocks.{}.mlp.w2"),
    "norm": _one("norm"),
    "head": _one("head"),
}
INTERNEVO_V2: Table = {
    "embedding": _one("tok_embeddings"),
    "layers.{}.attention_norm": _one("layers.{}.attention_norm"),
    "layers.{}.attention.wqkv": (("layers.{}.attention.wqkv",), QKV_GROUPED),
    "layers.{}.attention.wo": _one("layers.{}.attention.wo"),
    "layers.{}.ffn_norm": _one("layers.{}.ffn_norm"),
    "layers.{}.feed_forward.w13": (("layers.{}.feed_forward.w1", "layers.{}.feed_forward.w3"), GATE_UP),
    "layers.{}.feed_forward.w2": _one("layers.{}.feed_forward.w2"),
    "norm": _one("norm"),
    "head": _one("output"),
}


@dataclass(frozen=True)
class Move:
    """A parameter of ours, and the tensors of theirs that it is made of."""

    param: Param
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    layout: Layout


def moves(table: Table, model: ModelConfig) -> list[Move]:
    """One for each parameter of `model`, in forward order."""
    arch, found = architecture(model), list[Move]()
    for param in parameters(model):
        module, _, kind = param.name.rpartition(".")
        layer = str(param.layer - 1)
        theirs, layout = table[module.replace(f"layers.{layer}.", "layers.{}.", 1)]
        parts = layout.split(torch.empty(param.shape, device="meta"), arch)
        names = tuple(f"{name.format(layer)}.{kind}" for name in theirs)
        found.append(Move(param, names, tuple(tuple(part.shape) for part in parts), layout))
    return found
