"""A transformers model as it is: a tiny random Llama learns to count. Nothing is downloaded.

    pip install 'internevo-engine[hf]'
    python docs/examples/transformers_llama.py [eager]

"eager" leaves the compiler out: it starts at once, and each step takes longer.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from internevo_engine import Engine

VOCAB, SEQ_LEN, STEPS = 128, 32, 60
COMPILER = {"compile": sys.argv[1]} if sys.argv[1:] else {}


def mean_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


def counting(generator: torch.Generator) -> dict[str, Tensor]:
    """Sequences that count from a random start, by ones or by twos."""
    start = torch.randint(VOCAB, (8, 1), generator=generator)
    stride = torch.randint(1, 3, (8, 1), generator=generator)
    tokens = (start + stride * torch.arange(SEQ_LEN)) % VOCAB
    return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaForCausalLM(shape)
    engine = Engine(model, mean_loss, steps=STEPS, optim={"lr": 1e-2}, graph=COMPILER, say=print)
    data = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        result = engine.step([counting(data)])
        if step % 10 == 0 or step == STEPS - 1:
            print(f"step {step:2}  loss {result.loss:.3f}  grad_norm {result.grad_norm:.2f}")
    loss, count = engine.evaluate([counting(data) for _ in range(4)])
    print(f"held-out loss {loss / count:.3f}")
    model.load_state_dict(engine.state_dict())  # names and shapes are those of transformers
    engine.close()


if __name__ == "__main__":
    main()
