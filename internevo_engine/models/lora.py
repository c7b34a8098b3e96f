"""models: low-rank adapters (LoRA, arXiv:2106.09685) on a decoder that stays as it is. Plain torch.nn, no ranks.

    y = W x + alpha / rank * B A x        A [rank, columns], B [rows, rank]

A matrix of several parts (queries, keys, values; gate, up) has an adapter for each part that is a target, so that they
are those of peft. models/families.py has the same parameters as a table.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo_engine.config.inputs import LoraConfig, ModelConfig, Target
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import architecture, is_adapter, projections


class Adapter(nn.Module):
    """What is added to a part of a projection."""

    def __init__(self, columns: int, rows: int, lora: LoraConfig) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(lora.rank, columns))
        self.lora_B = nn.Parameter(torch.empty(rows, lora.rank))
        self.scale = lora.alpha / lora.rank

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale


class AdaptedLinear(nn.Linear):
    """A projection with adapters on some of its parts; its own weight and bias are called as before."""

    def __init__(self, columns: int, parts: Mapping[Target, int], lora: LoraConfig, *, bias: bool) -> None:
        super().__init__(columns, sum(parts.values()), bias)
        self.rows = list(parts.values())
        self.adapted = [part if part in lora.targets else None for part in parts]
        for part, rows in parts.items():
            if part in lora.targets:
                self.add_module(part, Adapter(columns, rows, lora))

    def forward(self, input: Tensor) -> Tensor:
        parts = zip(super().forward(input).split(self.rows, dim=-1), self.adapted, strict=True)
        return torch.cat([y if name is None else y + getattr(self, name)(input) for y, name in parts], dim=-1)


def adapt(decoder: Decoder, model: ModelConfig, lora: LoraConfig) -> None:
    """Put adapters beside the targets, and freeze all else. On meta, or before the parameters have values."""
    if not lora.rank:
        return
    for name, projection in projections(architecture(model)).items():
        if {*projection.parts} & {*lora.targets}:
            parent, _, child = name.rpartition(".")
            for layer in decoder.layers:
                adapted = AdaptedLinear(projection.columns, projection.parts, lora, bias=projection.bias)
                setattr(layer.get_submodule(parent), child, adapted)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_(is_adapter(name))
