"""One process, one first step: what bench/test_first_step.py times. Prints JSON.

    python -m bench.one_step engine|compile|eager LAYERS STEPS

`engine` captures and schedules the step (graph.compile=inductor); `compile` is torch.compile(fullgraph=True) of the
same model, `eager` the model as it is, both with fused AdamW and clip_grad_norm_. One thread.
"""

import json
import sys
import time
from collections.abc import Callable

import torch

from internevo_engine.config.schema import Config, DataConfig, GraphConfig, ModelConfig, OptimConfig, RunConfig
from internevo_engine.data.packing import MicroBatch, RandomCorpus
from internevo_engine.engine import Engine
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE

SEQ_LEN, MICRO_BATCH, VOCAB = 256, 2, 8192
CPU = torch.device("cpu")
Step = Callable[[MicroBatch], None]


def config(layers: int) -> Config:
    """d 256, 4 heads, ffn 704, vocabulary 8192: the model of the design's measurements."""
    return Config(
        model=ModelConfig(family="llama", vocab=VOCAB, layers=layers, hidden=256, heads=4, ffn=704),
        data=DataConfig(seq_len=SEQ_LEN, micro_batch=MICRO_BATCH),
        optim=OptimConfig(lr=1e-3),
        graph=GraphConfig(),
        run=RunConfig(steps=1000),
    )


def engine_step(cfg: Config, model: torch.nn.Module, example: MicroBatch) -> Step:
    plan = make_plan(cfg, parameters(cfg.model), Topology(1, 1, "cpu"))
    engine = Engine[MicroBatch](model, token_loss, plan, Communicator(ALONE, CPU, plan.levels), example=example)

    def step(batch: MicroBatch) -> None:
        engine.step([batch])

    return step


def torch_step(cfg: Config, model: torch.nn.Module, *, compiled: bool) -> Step:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    run = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

    def step(batch: MicroBatch) -> None:
        adamw.zero_grad()
        loss, count = token_loss(run, batch)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.optim.clip)
        adamw.step()

    return step


def main(kind: str, layers: int, steps: int) -> None:
    torch.set_num_threads(1)
    cfg = config(layers)
    corpus = RandomCorpus(VOCAB, seq_len=SEQ_LEN, micro_batch=MICRO_BATCH, seed=0)
    model = build(cfg.model, SEQ_LEN, torch.float32, CPU, seed=0)
    batches = [corpus.micro_batch(step, 0, 1) for step in range(steps)]
    make = {
        "engine": lambda: engine_step(cfg, model, batches[0]),
        "compile": lambda: torch_step(cfg, model, compiled=True),
        "eager": lambda: torch_step(cfg, model, compiled=False),
    }
    step = make[kind]()
    seconds = []
    for batch in batches:
        begin = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"kind": kind, "layers": layers, "step_s": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
