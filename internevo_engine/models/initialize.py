"""models: build a decoder with its initial values.

Each parameter is drawn by its own generator, seeded from the run's seed and the parameter's name. So its value
depends on nothing else: not on the other parameters, the order, the number of ranks or how they share the model.
"""

import math
from collections.abc import Iterable, Mapping
from hashlib import sha256

import torch

from internevo_engine.config.inputs import LoraConfig, ModelConfig
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import NO_ADAPTERS, Architecture, architecture, is_adapter, parameters
from internevo_engine.models.lora import adapt
from internevo_engine.plan.params import Param

TORCH_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By their names in the config."""


def build(
    model: ModelConfig,
    seq_len: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    lora: LoraConfig = NO_ADAPTERS,
) -> Decoder:
    """A decoder with initial parameters in `dtype` on `device`, and RoPE tables for `seq_len` positions.

    Values are drawn in fp32 on `device`, then rounded; CPU and CUDA draw different numbers from the same seed.
    """
    decoder = allocate(model, seq_len, dtype, device, lora)
    draw_all(decoder, parameters(model, lora), architecture(model), seed)
    return decoder


def allocate(
    model: ModelConfig, seq_len: int, dtype: torch.dtype, device: torch.device, lora: LoraConfig = NO_ADAPTERS
) -> Decoder:
    """A decoder whose parameters have no values yet: built on meta first, so that nothing is filled twice."""
    decoder = on_meta(model, seq_len, dtype, lora).to_empty(device=device)
    decoder.rope.fill()
    return decoder


def on_meta(model: ModelConfig, seq_len: int, dtype: torch.dtype, lora: LoraConfig = NO_ADAPTERS) -> Decoder:
    """A decoder that takes no memory."""
    with torch.device("meta"):
        decoder = Decoder(model, seq_len)
        adapt(decoder, model, lora)
    return decoder.to(dtype)


@torch.no_grad()
def draw_all(decoder: Decoder, params: Iterable[Param], arch: Architecture, seed: int) -> None:
    """Initial values for some of the parameters."""
    for param in params:
        parameter = decoder.get_parameter(param.name)
        parameter.copy_(draw(param, arch, parameter.device, seed))


def draw(param: Param, arch: Architecture, device: torch.device, seed: int) -> torch.Tensor:
    """The initial value of one parameter, fp32, on `device`."""
    mean, std = mean_and_std(param, arch)
    digest = sha256(f"{seed}/{param.name}".encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))
    return torch.empty(param.shape, dtype=torch.float32, device=device).normal_(mean, std, generator=generator)


def mean_and_std(param: Param, arch: Architecture) -> tuple[float, float]:
    """Mean and deviation of a parameter's normal distribution; the vectors start as constants: deviation 0."""
    if not param.is_matrix:
        return (0.0 if param.name.endswith(".bias") else 1.0), 0.0
    if param.name in ("embedding.weight", "head.weight"):
        return 0.0, arch.embed_init_std
    if is_adapter(param.name):  # A as deviates as peft's uniform one; with B zero the model begins as it was
        return 0.0, 0.0 if param.name.endswith("B") else 1 / math.sqrt(3 * param.shape[1])
    adds_to_residual = param.name.endswith(("wo.weight", "w2.weight"))
    return 0.0, arch.init_std / math.sqrt(2 * param.layer if arch.scaled_init and adds_to_residual else 1)
