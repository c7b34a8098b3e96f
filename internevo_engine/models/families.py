"""models: the table of families and the parameter table of a model. Plain data, no torch.

Stands between config and plan: `architecture(model)` turns what the user left open into values, `parameters(model)`
hands the planner every name and shape. models/decoder.py builds the same parameters as torch modules.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from internevo_engine.config.inputs import LoraConfig, ModelConfig, Target
from internevo_engine.plan.params import Param

NO_ADAPTERS = LoraConfig()


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


def parameters(model: ModelConfig, lora: LoraConfig = NO_ADAPTERS) -> tuple[Param, ...]:
    """Every parameter in forward order; equal to `named_parameters()` of the Decoder, adapters included.

    Where there are adapters, they alone are trained.
    """
    arch = architecture(model)
    last = arch.layers + 1
    table = (
        Param("embedding.weight", (arch.vocab, arch.hidden), 0),
        *(
            Param(f"layers.{i}.{name}", shape, i + 1)
            for i in range(arch.layers)
            for name, shape in _layer_shapes(arch, lora)
        ),
        Param("norm.weight", (arch.hidden,), last),
        *(() if arch.tie_embeddings else (Param("head.weight", (arch.vocab, arch.hidden), last),)),
    )
    return tuple(replace(param, trained=is_adapter(param.name)) for param in table) if lora.rank else table


def is_adapter(name: str) -> bool:
    """Whether a parameter is half of an adapter, not one of the model's own."""
    return name.endswith((".lora_A", ".lora_B"))


@dataclass(frozen=True)
class Projection:
    """A linear map of a layer, of one part or of several in one matrix."""

    columns: int
    parts: Mapping[Target, int]
    """Rows of each part, in order."""
    bias: bool = False


def projections(arch: Architecture) -> Mapping[str, Projection]:
    """Those of a layer, by the names of their modules."""
    hidden, queries, keys = arch.hidden, arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return {
        "attention.wqkv": Projection(hidden, {"q_proj": queries, "k_proj": keys, "v_proj": keys}, arch.qkv_bias),
        "attention.wo": Projection(hidden, {"o_proj": hidden}, arch.o_bias),
        "feed_forward.w13": Projection(hidden, {"gate_proj": arch.ffn, "up_proj": arch.ffn}),
        "feed_forward.w2": Projection(arch.ffn, {"down_proj": hidden}),
    }


def _layer_shapes(arch: Architecture, lora: LoraConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    norms = {"attention.wqkv": "attention_norm", "feed_forward.w13": "ffn_norm"}
    for name, projection in projections(arch).items():
        if name in norms:
            yield f"{norms[name]}.weight", (arch.hidden,)
        rows = sum(projection.parts.values())
        yield f"{name}.weight", (rows, projection.columns)
        if projection.bias:
            yield f"{name}.bias", (rows,)
        for part, part_rows in projection.parts.items():
            if lora.rank and part in lora.targets:
                yield f"{name}.{part}.lora_A", (lora.rank, projection.columns)
                yield f"{name}.{part}.lora_B", (part_rows, lora.rank)
