"""interop: Hugging Face's config.json to our model section, and back. Data only: no torch, no code from the folder.

`read_config` serves from_hf.py, `config_json` export_hf.py. What the decoder can't compute is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from internevo_engine.config.schema import ModelConfig
from internevo_engine.errors import DataError
from internevo_engine.interop.names import HF_INTERNLM2, HF_LLAMA, Table
from internevo_engine.interop.tensors import read_json
from internevo_engine.models.families import Architecture


@dataclass(frozen=True)
class Foreign:
    """A model type of theirs."""

    family: str
    table: Table
    """Of its folders."""


MODEL_TYPES: Mapping[tuple[str, bool], Foreign] = {
    ("llama", False): Foreign("llama", HF_LLAMA),
    ("llama", True): Foreign("internlm", HF_LLAMA),
    ("internlm", False): Foreign("llama", HF_LLAMA),
    ("internlm", True): Foreign("internlm", HF_LLAMA),
    ("internlm2", False): Foreign("internlm2", HF_INTERNLM2),
    ("internlm3", False): Foreign("internlm3", HF_LLAMA),
}
"""By model_type and whether attention has biases; our families differ in nothing else that a config doesn't say."""

EXPORTS: Mapping[str, Mapping[str, object]] = {
    "internlm": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True},
    "internlm2": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False},
    "internlm3": {
        "architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3", "bias": False, "qkv_bias": False
    },
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False},
}  # fmt: skip
"""By our family. What transformers, vLLM and LMDeploy read without code from the folder: transformers has InternLM3,
but never had InternLM2."""

Count = Annotated[int, Field(gt=0, le=2**24)]


class Rope(BaseModel):
    """rope_scaling, and transformers 5's rope_parameters."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    factor: Annotated[float, Field(ge=1)] = 1.0


class HfConfig(BaseModel):
    """What we read of a config.json; numbers are bounded, so that a hostile one costs nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    model_type: str
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Annotated[int, Field(gt=0, le=1000)]
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    rms_norm_eps: Annotated[float, Field(gt=0)]
    max_position_embeddings: Count = 2048
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    hidden_act: str = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    bias: bool | None = None
    """InternLM's spelling of attention_bias; its first version has biases where nothing is said."""
    qkv_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @property
    def has_bias(self) -> bool:
        bias = self.model_type == "internlm" if self.bias is None else self.bias
        return bias or self.attention_bias or self.qkv_bias

    @property
    def token_ids(self) -> list[int]:
        eos = self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]
        return [token for token in (self.bos_token_id, *eos) if token is not None]


@dataclass(frozen=True)
class Read:
    """A config.json in our words."""

    model: ModelConfig
    table: Table
    max_len: int
    """Positions the model was made for, in tokens."""


def read_config(folder: Path) -> Read:
    """Translate folder/config.json.

    Raises:
        DataError: unreadable, an unknown model type, or something that the decoder doesn't compute.
    """
    path = folder / "config.json"
    values = read_json(path)
    if values.get("model_type") not in {name for name, _ in MODEL_TYPES}:
        raise DataError(
            f"{path}: model_type is {values.get('model_type')!r} (architectures {values.get('architectures')}); "
            f"the engine reads {', '.join(sorted({name for name, _ in MODEL_TYPES}))}"
        )
    try:
        return _translate(HfConfig.model_validate(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _translate(found: HfConfig) -> Read:
    _refuse_the_unknown(found)
    foreign = MODEL_TYPES[found.model_type, found.has_bias]
    keys = {
        "family": foreign.family,
        "vocab": found.vocab_size,
        "layers": found.num_hidden_layers,
        "hidden": found.hidden_size,
        "heads": found.num_attention_heads,
        "kv_heads": found.num_key_value_heads,
        "ffn": found.intermediate_size,
        "norm_eps": found.rms_norm_eps,
        "tie_embeddings": found.tie_word_embeddings,
        **_rope(found),
    }
    return Read(ModelConfig.model_validate(keys), foreign.table, found.max_position_embeddings)


def _rope(found: HfConfig) -> Mapping[str, float]:
    """Our RoPE keys."""
    rope = found.rope_parameters or found.rope_scaling or Rope()
    base = {"rope_base": rope.rope_theta or found.rope_theta or 1e4}
    match rope.rope_type or rope.type or "default":
        case "default":
            return base
        case "dynamic":
            return {**base, "rope_trained_len": found.max_position_embeddings, "rope_factor": rope.factor}
        case other:
            raise ValueError(f"RoPE scaling {other!r} is not what the decoder computes; it has default and dynamic")


def _refuse_the_unknown(found: HfConfig) -> None:
    head_dim = found.hidden_size // found.num_attention_heads
    wanted: Mapping[str, tuple[object, object]] = {
        "hidden_act": (found.hidden_act, "silu"),
        "mlp_bias": (found.mlp_bias, False),
        "attention bias": (found.has_bias, found.has_bias and (found.model_type, True) in MODEL_TYPES),
        "head_dim": (found.head_dim or head_dim, head_dim),
    }
    for key, (value, computed) in wanted.items():
        if value != computed:
            raise ValueError(f"{key} is {value}; for {found.model_type} the decoder computes only {computed}")
    if above := [token for token in found.token_ids if token >= found.vocab_size]:
        raise ValueError(f"token id {above[0]} is not below vocab_size={found.vocab_size}")


def config_json(
    family: str, arch: Architecture, *, seq_len: int, dtype: str, bos: object, eos: object
) -> dict[str, object]:
    """What config.json says of one of our models.

    Args:
        seq_len: positions the model was trained with, in tokens; beyond arch.rope_trained_len the grown RoPE base is
            written, for that is what the weights know.
        dtype: 'float32' or 'bfloat16'.
        bos, eos: ids, or lists of them, or None.
    """
    is_scaled = arch.rope_trained_len is not None and seq_len <= arch.rope_trained_len and arch.rope_factor > 1
    scaling = {"type": "dynamic", "rope_type": "dynamic", "factor": arch.rope_factor} if is_scaled else None
    return {
        **EXPORTS[family],
        "vocab_size": arch.vocab,
        "hidden_size": arch.hidden,
        "intermediate_size": arch.ffn,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": arch.norm_eps,
        "max_position_embeddings": arch.rope_trained_len if is_scaled else seq_len,
        "rope_theta": arch.rope_base_at(seq_len),
        "rope_scaling": scaling,
        "tie_word_embeddings": arch.tie_embeddings and not arch.norm_head,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": None,  # a pad token's embedding would get no gradient in fine-tuning
        "torch_dtype": dtype,
        "use_cache": True,
    }
