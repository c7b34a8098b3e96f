"""models: the table of families and the parameter table of a model. Plain data, no torch.

Stands between config and plan: `architecture(model)` turns what the user left open into values, `parameters(model)`
hands the planner every name and shape. models/decoder.py builds the same parameters as torch modules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from internevo_engine.config.schema import ModelConfig
from internevo_engine.plan.params import Param


@dataclass(frozen=True)
class Family:
    """What a family name decides; a key of the same name in `model` overrides it."""

    qkv_bias: bool
    """Bias on the query, key and value projections."""
    o_bias: bool
    """Bias on the attention's output projection."""
    rope_base: float
    norm_eps: float
    init_std: float
    """Deviation of the layers' initial weights."""
    embed_init_std: float
    """Deviation of the initial embedding and head."""
    scaled_init: bool
    """Divide the deviation of the output projections wo and w2 by sqrt(2 * layer number)."""


# InternEvo's model definitions and initialization; the RoPE bases are those of the published weights.
FAMILIES: Mapping[str, Family] = {
    "internlm": Family(True, True, 1e4, 1e-5, init_std=0.006, embed_init_std=0.0052, scaled_init=True),
    "internlm2": Family(False, False, 1e6, 1e-5, init_std=0.02, embed_init_std=0.02, scaled_init=True),
    "internlm3": Family(False, False, 5e7, 1e-5, init_std=0.02, embed_init_std=0.02, scaled_init=True),
    "llama": Family(False, False, 1e4, 1e-5, init_std=0.02, embed_init_std=0.02, scaled_init=True),
}


@dataclass(frozen=True)
class Architecture(Family):
    """A model with nothing left open: the family's row, overridden by the config, and the shape."""

    vocab: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_trained_len: int | None
    rope_factor: float
    norm_head: bool
    tie_embeddings: bool
    embed_grad_scale: float

    @property
    def qkv_rows(self) -> int:
        """Rows of the fused projection: queries, then keys, then values."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def rope_base_at(self, seq_len: int) -> float:
        """RoPE base for sequences of `seq_len` tokens: dynamic NTK grows it beyond the trained length.

        base * (factor * seq_len / trained - (factor - 1)) ** (d / (d - 2)), with d the head size. NTK-aware scaling is
        explained in arXiv:2309.00071; this form with a factor is the one that Hugging Face and InternLM use.
        """
        if self.rope_trained_len is None or seq_len <= self.rope_trained_len:
            return self.rope_base
        stretch = self.rope_factor * seq_len / self.rope_trained_len - (self.rope_factor - 1)
        return self.rope_base * stretch ** (self.head_dim / (self.head_dim - 2))


def architecture(model: ModelConfig) -> Architecture:
    """Fill in the family's values where the config says null."""
    family = FAMILIES[model.family]
    return Architecture(
        qkv_bias=family.qkv_bias,
        o_bias=family.o_bias,
        rope_base=model.rope_base or family.rope_base,
        norm_eps=model.norm_eps or family.norm_eps,
        init_std=model.init_std or family.init_std,
        embed_init_std=model.init_std or family.embed_init_std,
        scaled_init=family.scaled_init if model.scaled_init is None else model.scaled_init,
        vocab=model.vocab,
        layers=model.layers,
        hidden=model.hidden,
        heads=model.heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        ffn=model.ffn,
        rope_trained_len=model.rope_trained_len,
        rope_factor=model.rope_factor,
        norm_head=model.norm_head,
        tie_embeddings=model.tie_embeddings,
        embed_grad_scale=model.embed_grad_scale,
    )


def parameters(model: ModelConfig) -> tuple[Param, ...]:
    """Every trained parameter in forward order; equal to `Decoder(model, ...).named_parameters()`."""
    arch = architecture(model)
    last = arch.layers + 1
    return (
        Param("embedding.weight", (arch.vocab, arch.hidden), 0),
        *(Param(f"layers.{i}.{name}", shape, i + 1) for i in range(arch.layers) for name, shape in _layer_shapes(arch)),
        Param("norm.weight", (arch.hidden,), last),
        *(() if arch.tie_embeddings else (Param("head.weight", (arch.vocab, arch.hidden), last),)),
    )


def _layer_shapes(arch: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, ffn = arch.hidden, arch.ffn
    yield "attention_norm.weight", (hidden,)
    yield "attention.wqkv.weight", (arch.qkv_rows, hidden)
    if arch.qkv_bias:
        yield "attention.wqkv.bias", (arch.qkv_rows,)
    yield "attention.wo.weight", (hidden, hidden)
    if arch.o_bias:
        yield "attention.wo.bias", (hidden,)
    yield "ffn_norm.weight", (hidden,)
    yield "feed_forward.w13.weight", (2 * ffn, hidden)
    yield "feed_forward.w2.weight", (hidden, ffn)
