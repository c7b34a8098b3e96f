"""LoRA through the engine: the losses of a plain PyTorch loop, whatever the ranks and the plan; the base untouched.

In `ordered` every plan gives equal bits.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from internevo_engine.config.schema import Config, LoraConfig
from internevo_engine.engine import Engine
from internevo_engine.models.families import is_adapter
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.runtime.launch import Place
from tests import test_engine
from tests.ranks import run_ranks
from tests.test_engine import MICRO_BATCHES, SEED, SEQ_LEN, Outcome, config, micro_batches_of, pack

STEPS = 10
LORA = LoraConfig(rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"))


def lora_config(world: int, sizes: tuple[int, int, int], mode: str = "graph", reduction: str = "fast") -> Config:
    cfg = config(sizes=sizes, mode=mode, grad_accum=MICRO_BATCHES // world, steps=STEPS, reduction=reduction)
    return cfg.model_copy(update={"lora": LORA})


def model_of(cfg: Config) -> torch.nn.Module:
    return build(cfg.model, SEQ_LEN, torch.float32, torch.device("cpu"), SEED, cfg.lora)


def train_all(place: Place, configs: list[Config]) -> list[tuple[Outcome, int, int]]:
    """Losses, norms and weights of each, and the bytes of the states: what they are and what the plan says."""
    outcomes = []
    for cfg in configs:
        example = pack([torch.arange(SEQ_LEN + 1)])
        engine = Engine(model_of(cfg), token_loss, **dict(cfg.step), example=example, place=place)
        results = [engine.step(micro_batches_of(place, cfg, step)) for step in range(STEPS)]
        with engine.whole_parameters():
            weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
        outcome = Outcome([r.loss for r in results], [r.grad_norm for r in results], weights)
        outcomes.append((outcome, engine.state.num_bytes, engine.plan.memory.states))
        engine.close()
    return outcomes


@pytest.fixture(scope="module")
def oracle() -> Outcome:
    """Autograd and torch.optim.AdamW on the same adapted module, a document at a time."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_engine, "model_of", model_of)
        found = test_engine.plain_loop(lora_config(1, (1, 1, 1)))
    return replace(found, weights={name: w for name, w in found.weights.items() if is_adapter(name)})


@pytest.mark.parametrize("world", [1, 2])
def test_losses_and_weights_are_those_of_a_plain_loop(tmp_path: Path, oracle: Outcome, world: int) -> None:
    configs = [lora_config(world, (world, world, world)), lora_config(world, (1, 1, world), mode="hooks")]
    if world > 1:
        configs += [lora_config(world, sizes, reduction="ordered") for sizes in ((1, 1, 1), (1, 2, 2), (2, 2, 2))]
    before = dict(model_of(configs[0]).named_parameters())
    for results in run_ranks(train_all, world, tmp_path, configs):
        for outcome, num_bytes, planned in results:
            test_engine.assert_equal(outcome, oracle)
            assert num_bytes == planned
            changed = {name for name, weight in outcome.weights.items() if not torch.equal(weight, before[name])}
            assert changed == {name for name, parameter in before.items() if parameter.requires_grad}
        ordered = [outcome for outcome, _, _ in results[2:]]
        for outcome in ordered:
            assert outcome.losses == ordered[0].losses
            assert all(torch.equal(outcome.weights[name], w) for name, w in ordered[0].weights.items())
