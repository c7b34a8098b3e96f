"""What every implementation in bench/ trains: one model, one initial value, one stream of micro-batches.

Random tokens, of which every one counts: so each rank has as many as any other, and a mean over ranks of means is the
mean over valid tokens, also for implementations that know no other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from internevo_engine.config.schema import (
    CommConfig,
    Config,
    DataConfig,
    GraphConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ZeroConfig,
)
from internevo_engine.data.packing import MicroBatch, RandomCorpus
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import parameters
from internevo_engine.models.flops import model_flops
from internevo_engine.models.initialize import build

VOCAB, MICRO_BATCH, SEED = 8192, 2, 0
OPTIM = OptimConfig(lr=1e-3, eta_min=1e-3, schedule="constant", warmup_ratio=0.0, decay="all", clip=1.0)
"""Constant and without exceptions, so that torch.optim.AdamW does the same with one group of parameters."""


@dataclass(frozen=True)
class Size:
    """A row of SIZES: a decoder, and the length of its sequences."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    seq_len: int

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(
            family="llama",
            dtype="fp32",
            vocab=VOCAB,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            ffn=self.ffn,
        )


SIZES: Mapping[str, Size] = {
    "1M": Size(layers=2, hidden=64, heads=2, ffn=176, seq_len=256),
    "9M": Size(layers=6, hidden=256, heads=4, ffn=704, seq_len=256),
    "25M": Size(layers=5, hidden=512, heads=8, ffn=1408, seq_len=512),
    "60M": Size(layers=7, hidden=768, heads=12, ffn=2048, seq_len=512),
    "100M": Size(layers=7, hidden=1024, heads=16, ffn=2816, seq_len=64),
}


@dataclass(frozen=True)
class Settings:
    """What is measured, beside the implementation. All ranks have the same."""

    size: str = "9M"
    """Row of SIZES."""
    layers: int | None = None
    """Other than the size's."""
    micro_batch: int = MICRO_BATCH
    """Sequences of one rank."""
    accumulate: int = 1
    """Micro-batches of one rank in one step."""
    steps: int = 5
    """Timed, after `warm_up`."""
    warm_up: int = 3
    zero: tuple[int, int, int] = (1, 1, 1)
    """The engine's group sizes of P, G and OS."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """What the engine's gradients travel in."""
    bucket_mb: float = 4.0
    """Small enough that the 9M model has a bucket for each layer; in one bucket nothing would overlap."""
    compile: Literal["inductor", "eager"] = "inductor"
    """What runs the engine's regions."""
    overlap: bool = True

    @property
    def model(self) -> ModelConfig:
        model = SIZES[self.size].model
        return model if self.layers is None else model.model_copy(update={"layers": self.layers})

    @property
    def seq_len(self) -> int:
        return SIZES[self.size].seq_len

    @property
    def num_parameters(self) -> int:
        return sum(param.numel for param in parameters(self.model))

    @property
    def rank_tokens(self) -> int:
        """Of one rank in one step."""
        return self.seq_len * self.micro_batch * self.accumulate

    @property
    def rank_flops(self) -> int:
        """Of one rank in one step; the optimizer and recomputation are not counted."""
        sequences = self.micro_batch * self.accumulate
        return model_flops(self.model, self.rank_tokens, sequences * self.seq_len**2)

    @property
    def config(self) -> Config:
        """As the engine is told."""
        param, grad, optim = self.zero
        return Config(
            model=self.model,
            data=DataConfig(seq_len=self.seq_len, micro_batch=self.micro_batch, grad_accum=self.accumulate),
            optim=OPTIM,
            zero=ZeroConfig(param=param, grad=grad, optim=optim),
            comm=CommConfig(wire=self.wire, bucket_mb=self.bucket_mb, overlap=self.overlap),
            graph=GraphConfig(compile=self.compile),
            run=RunConfig(steps=self.warm_up + self.steps, seed=SEED),
        )

    def make_model(self, device: torch.device) -> Decoder:
        """Equal on all ranks."""
        return build(self.model, self.seq_len, torch.float32, device, SEED)

    def micro_batches(self, step: int, rank: int, world: int) -> list[MicroBatch]:
        """Of one rank in one step."""
        corpus = RandomCorpus(VOCAB, seq_len=self.seq_len, micro_batch=self.micro_batch, seed=SEED)
        per_step = self.accumulate * world
        return [corpus.micro_batch(step, rank + world * m, per_step) for m in range(self.accumulate)]
