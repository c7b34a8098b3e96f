"""A model, data and loop of one's own: the engine captures the step, compiles it and schedules the update.

    python docs/examples/own_loop.py [eager]

"eager" leaves the compiler out: it starts at once, and each step takes longer.
"""

import sys

import torch
from torch import Tensor, nn

from internevo_engine import Engine

STEPS, GRAD_ACCUM, WIDTH = 40, 2, 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Regression(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))  # equal layers are compiled once

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x).squeeze(-1)


def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:  # a sum and its count; or a mean
    return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["y"])


def micro_batch(generator: torch.Generator) -> dict[str, Tensor]:
    x = torch.randn(32, 8, generator=generator)
    return {"x": x, "y": x.sin().sum(-1)}


torch.manual_seed(0)
keys = {"optim": {"lr": 3e-3}, "graph": {"compile": sys.argv[1]} if sys.argv[1:] else {}}
engine = Engine(Regression(), loss_fn, steps=STEPS, grad_accum=GRAD_ACCUM, say=print, **keys)
data = torch.Generator().manual_seed(1)
for step in range(STEPS):
    losses = [engine.forward_backward(micro_batch(data)) for _ in range(GRAD_ACCUM)]
    result = engine.optimizer_step()
    if step % 10 == 9:
        print(f"step {step:2}  loss {result.loss:.3f}, of the micro-batches {[round(float(x), 3) for x in losses]}")
engine.close()
