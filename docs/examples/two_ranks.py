"""Several ranks: the optimizer states are sharded over all of them, every rank feeds its own data.

    torchrun --nproc-per-node 2 docs/examples/two_ranks.py [eager]

"eager" leaves the compiler out: it starts at once, and each step takes longer.
"""

import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internevo_engine import Engine

STEPS = 40
COMPILER = {"compile": sys.argv[1]} if sys.argv[1:] else {}


def mean_square(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return (model(x).squeeze(-1) - y).square().mean()


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank()
    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)).to(device)
    say = print if rank == 0 else (lambda text: None)
    sections = {"optim": {"lr": 3e-3}, "zero": {"optim": "world"}, "graph": COMPILER}
    engine = Engine(model, mean_square, steps=STEPS, say=say, **sections)
    say(f"shards: {engine.plan.sizes}")
    data = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        x = torch.randn(64, 8, generator=data)
        result = engine.step([(x, x.sin().sum(-1))])
        if step % 10 == 0 or step == STEPS - 1:
            say(f"step {step:2}  loss {result.loss:.3f}  grad_norm {result.grad_norm:.2f}")
    weights = engine.state_dict()  # every rank takes part, rank 0 may save it
    say(f"{len(weights)} whole parameters")
    engine.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
