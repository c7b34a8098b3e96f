"""loop: a continuation by the model as it is, so that a person can see what the loss means."""

import torch

from internevo_engine.data.tokenizers import Tokenizer


@torch.no_grad()
def continuation(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    seq_len: int,
    seed: int,
    temperature: float = 0.7,
    top_k: int = 50,
) -> str:
    """Sample up to `num_tokens` tokens after `prompt`; deterministic for a seed. Returns the new text only."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    start = len(tokens)
    for _ in range(num_tokens):
        window = torch.tensor(tokens[-seq_len:], device=device)
        boundaries = torch.tensor([0, len(window)], dtype=torch.int32, device=device)
        logits = model(window, torch.arange(len(window), device=device), boundaries)[-1].float().cpu()
        best, indices = torch.topk(logits / temperature, min(top_k, len(logits)))
        chosen = int(indices[torch.multinomial(best.softmax(0), 1, generator=generator)])
        if chosen == tokenizer.eos_id:
            break
        tokens.append(chosen)
    return tokenizer.decode(tokens[start:])
