"""plan: memory of one rank, forecast in bytes before anything is allocated.

States are exact: the runtime allocates these very buffers. Activations count what autograd keeps for the backward
pass of models/decoder.py (tests/plan/test_memory.py compares with what it really keeps).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from internevo_engine.config.schema import ModelConfig

DTYPE_BYTES = {"fp32": 4, "bf16": 2}
PROCESS_BYTES = {"cpu": 400_000_000, "cuda": 1_500_000_000}
"""Interpreter and libraries; on CUDA the context and NCCL's buffers (not measured by us: a round figure)."""


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes on one rank at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    process: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def states(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def forecast_memory(
    model: ModelConfig, bucket_numels: Sequence[int], *, dtype: str, optim_group: int, num_tokens: int, device: str
) -> MemoryForecast:
    """Forecast for one rank.

    Args:
        bucket_numels: padded elements of each flat bucket.
        dtype: 'fp32' or 'bf16', of parameters and activations.
        optim_group: ranks that share the optimizer states.
        num_tokens: tokens in one micro-batch.
    """
    numel, size = sum(bucket_numels), DTYPE_BYTES[dtype]
    has_own_master = dtype != "fp32"  # an fp32 parameter is its own master
    return MemoryForecast(
        parameters=numel * size,
        gradients=numel * 4,
        optimizer=numel // optim_group * (8 + 4 * has_own_master),
        activations=num_tokens * saved_bytes_per_token(model, size),
        logits=num_tokens * model.vocab * (size + 8),  # logits, their fp32 copy, its gradient
        process=PROCESS_BYTES[device],
    )


def saved_bytes_per_token(model: ModelConfig, size: int) -> int:
    """Activations kept for the backward pass, without recomputation, logits excluded."""
    kv = model.num_kv_heads * model.head_dim
    attention = 5 * model.hidden + 2 * kv  # input, normed input, q, output, residual; k and v
    feed_forward = model.hidden + 4 * model.ffn  # normed input; gate and up, activated gate, product
    layer = (attention + feed_forward) * size + 4 * model.heads + 8  # log-sum-exp, two inverse norms
    return model.layers * layer + 2 * model.hidden * size
