"""config: the keys of `model`, `lora` and `data`, what is trained on what. schema makes one list of all."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from internevo_engine.units import divisors, one_of

Positive = Annotated[int, Field(gt=0, le=1 << 40)]
NonNegative = Annotated[int, Field(ge=0, le=1 << 63)]
Width = Annotated[int, Field(gt=0, le=1 << 20)]
"""Of a layer; with it and the two bounds below every count of parameters fits into 64 bits."""
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of all sections: unknown keys, wrong types and later changes are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    """The shape of the decoder; the family decides biases, RoPE base, norm epsilon and initialization."""

    family: Literal["internlm", "internlm2", "internlm3", "llama"]
    """Row of the family table in models/families.py."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of parameters and computation (the optimizer keeps fp32); auto: bf16 on CUDA, fp32 on CPU."""
    vocab: Annotated[int, Field(gt=0, le=1 << 24)]
    """Rows of the embedding and of the head, in tokens."""
    layers: Annotated[int, Field(gt=0, le=1 << 12)]
    """Number of decoder layers."""
    hidden: Width
    """Width of the residual stream."""
    heads: Width
    """Number of query heads; the head size is hidden / heads."""
    kv_heads: Width | None = None
    """Number of key and value heads (grouped-query attention); null: as many as heads."""
    ffn: Width
    """Width of the gated feed-forward layer."""
    rope_base: Annotated[float, Field(gt=0)] | None = None
    """Base of the rotary embedding; null: the family's."""
    rope_trained_len: Positive | None = None
    """Sequence length the RoPE base was trained for, in tokens; beyond it dynamic NTK scaling grows the base."""
    rope_factor: Annotated[float, Field(ge=1.0)] = 1.0
    """Scaling factor of dynamic NTK; used only beyond rope_trained_len."""
    norm_eps: Annotated[float, Field(gt=0)] | None = None
    """Epsilon of RMSNorm; null: the family's."""
    norm_head: bool = False
    """Normalize each row of the head to length 1 before the logits."""
    tie_embeddings: bool = False
    """Use the embedding as the head: one [vocab, hidden] parameter instead of two."""
    embed_grad_scale: Annotated[float, Field(gt=0, le=1.0)] = 1.0
    """Factor on the embedding's gradient; the forward value is unchanged."""
    init_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of initial weights; null: the family's."""
    scaled_init: bool | None = None
    """Divide the output projections' deviation by sqrt(2 * layer number); null: the family's."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden % self.heads:
            raise ValueError(
                f"hidden={self.hidden} is not divisible by heads={self.heads}; "
                f"use hidden={self.hidden // self.heads * self.heads or self.heads} or another heads"
            )
        if self.hidden // self.heads % 2:
            raise ValueError(
                f"the head size hidden/heads={self.hidden // self.heads} must be even for RoPE; change heads"
            )
        if self.heads % self.num_kv_heads:
            allowed = one_of(divisors(self.heads))
            raise ValueError(f"kv_heads={self.num_kv_heads} does not divide heads={self.heads}; use {allowed}")
        return self

    @property
    def num_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""Projections of a layer, as Llama's and peft's users call them."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv:2106.09685) beside a model that stays as it is."""

    rank: NonNegative = 0
    """Rows of A and columns of B; 0: no adapters, the model itself is trained."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """An adapter adds alpha / rank * B A x to its projection."""
    targets: Annotated[tuple[Target, ...], Field(strict=False, min_length=1)] = ("q_proj", "v_proj")
    """Projections with an adapter, in every layer."""
    init: str | None = None
    """Adapters to begin with: a folder in peft's format, such as a LoRA run's `final`; null: A random, B zero."""


class DataConfig(Section):
    """What is trained on, and how it is cut into micro-batches."""

    train: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = "random"
    """'random', 'python-stdlib', or one or several files or folders of text, JSONL or parquet, token folders, InternEvo
    folders, or Megatron files; docs/data.md."""
    weights: Annotated[tuple[Weight, ...], Field(strict=False)] | None = None
    """A number for each entry of train: the share of the sequences that it gives; null: each token once an epoch."""
    valid: str | Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    """Held-out corpus, named like train ('python-stdlib-heldout' belongs to 'python-stdlib'); null: no validation."""
    tokenizer: str | None = None
    """'train' (a sentencepiece BPE of model.vocab pieces, trained on the corpus) or the path of a .model file or of a
    tokenizer.json (extra [hf]); null: train on token files or random tokens only."""
    text_key: str = "text"
    """Key of the text in each line of a JSONL file or row of a parquet file."""
    chat: Literal["internlm", "internlm2", "chatml"] | None = None
    """Template for records with 'messages' or 'instruction' and 'output', of which only answers are counted in the
    loss; null: all records are texts."""
    seq_len: Annotated[int, Field(ge=2)] = 2048
    """Longest piece of a document that attends to itself, in tokens."""
    micro_batch: Positive = 1
    """Sequences of seq_len in one micro-batch of one rank; documents are packed into seq_len * micro_batch tokens."""
    grad_accum: Positive = 1
    """Micro-batches of one rank in one step."""
    pack_sample_into_one: bool = False
    """Attention and positions run on from a document to the next within a sequence (InternEvo's key); false: each
    document attends to itself only."""
    cache: str | None = None
    """Folder for tokenizers and token files made from text; null: 'tokens' beside the run folder."""

    @model_validator(mode="after")
    def _weight_for_each_entry(self) -> "DataConfig":
        num_entries = 1 if isinstance(self.train, str) else len(self.train)
        if self.weights is not None and (len(self.weights) != num_entries or self.train == "random"):
            raise ValueError(
                f"weights has {len(self.weights)} numbers, train={self.train} has {num_entries} corpora to weigh; "
                f"give one number for each"
            )
        return self
