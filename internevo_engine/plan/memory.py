"""plan: memory of one rank, forecast in bytes before anything is allocated.

States are exact: the runtime allocates these very buffers. So are the decoder's activations for graph.mode=graph: they
are what a captured step of models/decoder.py keeps (tests/plan/test_memory.py). Eager autograd keeps somewhat more, and
gathered parameters and packed gradients of a few buckets come on top where states are sharded.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from internevo_engine.config.schema import Config, ModelConfig, RecomputeBudget
from internevo_engine.plan.hybrid_zero import GroupSizes
from internevo_engine.plan.reduction import num_sums
from internevo_engine.program import Mode

Recompute = str | float | RecomputeBudget
DTYPE_BYTES = {"fp32": 4, "bf16": 2}
PROCESS_BYTES = {"cpu": 400_000_000, "cuda": 1_500_000_000}
"""Interpreter and libraries; on CUDA the context and NCCL's buffers (not measured by us: a round figure)."""


@dataclass(frozen=True, kw_only=True)
class MemoryForecast:
    """Bytes on one rank at the peak of a step."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int = 0
    """Kept from forward to backward of a micro-batch; 0 as long as nothing is known of the model but its parameters."""
    logits: int = 0
    """Those of the decoder, while its loss is computed."""
    process: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())

    @property
    def states(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def forecast_states(
    trained: int, frozen: int, *, dtype: str, sizes: GroupSizes, mode: Mode, grad_accum: int, device: str
) -> MemoryForecast:
    """Forecast for one rank, without what only a known model tells.

    Args:
        trained, frozen: padded elements of the flat buckets.
        dtype: 'fp32' or 'bf16', of parameters and activations.
        sizes: ranks that share one copy of each state.
        mode: how gradients are summed.
        grad_accum: micro-batches of one rank in one step.
    """
    size = DTYPE_BYTES[dtype]
    has_own_master = dtype != "fp32"  # an fp32 parameter is its own master
    return MemoryForecast(
        parameters=(trained + frozen) // sizes.param * size,
        gradients=trained // sizes.summed(mode) * 4 * num_sums(mode, grad_accum),
        optimizer=trained // sizes.optim * (8 + 4 * has_own_master),
        process=PROCESS_BYTES[device],
    )


def decoder_activations(config: Config, dtype: str) -> dict[str, int]:
    """The rest of the forecast, by field: what a micro-batch of models/decoder.py adds.

    Beside adapters it is a bound: the inputs of a frozen matrix need not be kept.
    """
    size, recompute, num_tokens = DTYPE_BYTES[dtype], config.graph.recompute, config.micro_batch_tokens
    kept = int(num_tokens * (kept_bytes_per_token(config.model, size, recompute) + _adapter_bytes(config, size)))
    if isinstance(recompute, RecomputeBudget):
        kept = min(kept, int(recompute.budget_gb * 1e9))
    logits = num_tokens * config.model.vocab * (size + 4)  # and their fp32 log-softmax
    return {"activations": kept, "logits": logits}


def _adapter_bytes(config: Config, size: int) -> int:
    """What adapters add to what is kept for a token: A x, and selective, B A x too."""
    model, lora, kv = config.model, config.lora, config.model.num_kv_heads * config.model.head_dim
    wide = {"k_proj": kv, "v_proj": kv, "gate_proj": model.ffn, "up_proj": model.ffn}
    rows = sum(wide.get(target, model.hidden) for target in lora.targets) * (config.graph.recompute == "selective")
    return model.layers * (lora.rank * len(lora.targets) + rows) * size if lora.rank else 0


def kept_bytes_per_token(model: ModelConfig, size: int, recompute: Recompute) -> float:
    """Activations kept from forward to backward of a captured step, logits excluded: what StepGraph.kept_bytes finds.

    Args:
        size: bytes of one element in the compute dtype.
        recompute: graph.recompute; a fraction repeats that share of the layers, a budget keeps at most itself.
    """
    if isinstance(recompute, float):
        repeated = round(recompute * model.layers)
        return repeated * _layer_bytes(model, size)["full"] + kept_bytes_per_token(
            model.model_copy(update={"layers": model.layers - repeated}), size, "none"
        )
    policy = recompute if isinstance(recompute, str) else "none"
    rope = 2 * model.head_dim * size
    return model.layers * _layer_bytes(model, size)[policy] + rope


def _layer_bytes(model: ModelConfig, size: int) -> Mapping[str, int]:
    """What a layer keeps for a token: full, its input; selective, products and attention too; none, all between."""
    hidden, kv, ffn = model.hidden, model.num_kv_heads * model.head_dim, model.ffn
    log_sum_exp, inverse_norms = 4 * model.heads, 8  # fp32
    products = (hidden + 2 * kv) + hidden + hidden + 2 * ffn  # qkv, attention, its projection, gate and up
    between = hidden + hidden + (hidden + kv) + ffn  # two normed inputs, turned q and k, gate times up
    return {
        "full": hidden * size,
        "selective": (hidden + products) * size + log_sum_exp,
        "none": (hidden + products + between) * size + log_sum_exp + inverse_norms,
    }
