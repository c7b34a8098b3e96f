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
        activations=num_tokens * saved_bytes_per_token(model, size, device),
        logits=num_tokens * model.vocab * (size + 4),  # logits and their fp32 log-softmax
        process=PROCESS_BYTES[device],
    )


def saved_bytes_per_token(model: ModelConfig, size: int, device: str) -> int:
    """Activations kept for the backward pass, without recomputation, logits excluded.

    The CUDA row follows from the kernels there (a fused RMSNorm keeps its input, flash attention's output is not
    copied); nobody of us has measured it.
    """
    hidden, kv = model.hidden, model.num_kv_heads * model.head_dim
    norm = {"cpu": (8 + size) * hidden, "cuda": 2 * size * hidden}[device] + 4  # cpu: fp32 input and normed input
    attention_inputs = (hidden + kv) + (hidden + 2 * kv)  # turned q and k; v as a view of the whole projection
    attention_outputs = {"cpu": 2 * hidden, "cuda": hidden}[device]
    attention = (attention_inputs + attention_outputs) * size + 4 * model.heads  # and the log-sum-exp
    feed_forward = 3 * model.ffn * size  # gate and up, their product
    rope_and_tokens = 2 * model.head_dim * size + 8
    return model.layers * (2 * norm + attention + feed_forward) + norm + rope_and_tokens
