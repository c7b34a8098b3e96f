"""models: how many floating-point operations training takes. Plain arithmetic, no torch.

The loop divides model FLOPs by peak FLOPs to get MFU. InternEvo's own count stands beside it, so that its published
tables can be compared with.
"""

from fractions import Fraction

from internevo_engine.config.inputs import LoraConfig, ModelConfig
from internevo_engine.models.families import NO_ADAPTERS, parameters


def model_flops(model: ModelConfig, num_tokens: int, sum_squared_lengths: int, lora: LoraConfig = NO_ADAPTERS) -> int:
    """FLOPs of forward and backward over `num_tokens` packed tokens; recomputation is not counted.

    `sum_squared_lengths`: sum of l^2 over the pieces, in tokens^2. The numerator of MFU as in PaLM (arXiv:2204.02311,
    appendix B), with the causal half of the attention:

    Each weight of a matrix multiplication costs a token 2 FLOPs forward and 4 backward, 2 where it is frozen and has
    no gradient; the embedding is a lookup, unless it is the head too.
    Attention: QK^T and AV cost 2 * l^2 * hidden each and the causal mask leaves half, so 2 * l^2 * hidden forward,
    three times that with backward.
    """
    lookups = () if model.tie_embeddings else ("embedding.weight",)
    matrices = [p for p in parameters(model, lora) if p.is_matrix and p.name not in lookups]
    per_token = sum((6 if p.trained else 4) * p.numel for p in matrices)
    return per_token * num_tokens + 6 * model.layers * model.hidden * sum_squared_lengths


def internevo_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """FLOPs per token as InternEvo's log counts them, without recomputation.

    layers * (3 * (8 + 6 r) * hidden^2 + 3 * 4 * seq_len * hidden) + 6 * hidden * vocab: full attention over `seq_len`
    tokens without the causal half, and as many key/value heads as query heads. r is the ratio ffn / hidden that its
    config file names (8/3, say) before ffn is rounded up to a multiple of 256; it is read back here as the nearest
    fraction with a denominator of at most 3.
    """
    ratio = float(Fraction(model.ffn, model.hidden).limit_denominator(3))
    matmuls = 3 * (8 + 6 * ratio) * model.hidden**2
    attention = 3 * 4 * seq_len * model.hidden
    return model.layers * (matmuls + attention) + 6 * model.hidden * model.vocab
