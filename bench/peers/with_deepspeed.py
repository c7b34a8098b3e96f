"""DeepSpeed's ZeRO as a peer, over gloo on CPU or NCCL on GPUs; `pip install deepspeed`, best in a venv of its own.

It logs to stdout; the JSON of the command line is the last line. It joins the process group that is there.
"""

import os
from collections.abc import Sequence

import torch

from bench.peers.peer import Peer, Rank
from bench.peers.with_torch import ADAMW
from bench.workload import OPTIM
from internevo_engine.data.packing import MicroBatch
from internevo_engine.models.loss import token_loss


def build_deepspeed(rank: Rank, *, stage: int) -> Peer:
    """ZeRO stage 1, 2 or 3 in fp32, with torch's AdamW."""
    os.environ["DS_ACCELERATOR"] = rank.device.type  # the only way to tell it
    import deepspeed  # only where this row is measured  # pyright: ignore[reportMissingImports]

    model = rank.settings.make_model(rank.device)
    config = {
        "train_micro_batch_size_per_gpu": rank.settings.micro_batch,
        "gradient_accumulation_steps": rank.settings.accumulate,
        "gradient_clipping": OPTIM.clip,
        "zero_optimization": {"stage": stage},
    }
    deepspeed.init_distributed(dist_init_required=False)
    parameters = list(model.parameters())
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(parameters, **ADAMW), config=config)

    def step(micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        losses = []
        for batch in micro_batches:
            loss_sum, count = token_loss(engine, batch)
            engine.backward(loss_sum / count)  # it divides by the number of micro-batches itself
            engine.step()
            losses.append((loss_sum / count).detach())
        return torch.stack(losses).mean()

    return Peer(step)
