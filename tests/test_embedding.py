"""The public Engine as its users meet it: modules that are not ours, loops of their own, scripts, mistakes."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo_engine import Engine
from internevo_engine.config.schema import OptimConfig
from internevo_engine.errors import ConfigError, NumbersError, RanksDisagreeError, UsageError
from internevo_engine.graph.joint import CaptureError
from internevo_engine.runtime.launch import Place
from tests.graph.models import Stack, Tied, masked_loss, mean_square
from tests.ranks import run_ranks

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
STEPS, GRAD_ACCUM = 4, 2
EAGER = {"compile": "eager"}
OPTIM = {"lr": 1e-2, "warmup_ratio": 0.0, "eta_min": 1e-3}

Batch = dict[str, Tensor]


def tied(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def batch(number: int, length: int = 7) -> Batch:
    generator = torch.Generator().manual_seed(number)
    tokens, labels = (torch.randint(50, (2, length), generator=generator) for _ in range(2))
    return {"tokens": tokens, "labels": labels, "weights": torch.rand(2, length, generator=generator)}


def batches(step: int, rank: int = 0, world: int = 1) -> list[Batch]:
    first = step * GRAD_ACCUM * world
    return [batch(first + number * world + rank) for number in range(GRAD_ACCUM)]


def engine_of(model: nn.Module, loss_fn: Any = masked_loss, **keys: Any) -> Engine[Any]:
    return Engine(model, loss_fn, **{"steps": STEPS, "grad_accum": GRAD_ACCUM, "optim": OPTIM, "graph": EAGER} | keys)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(EXAMPLES.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def losses_of(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"^step .*?loss ([0-9.]+)", text, re.MULTILINE)]


# Scripts.


def test_a_loop_of_ones_own_learns() -> None:
    losses = losses_of(run(sys.executable, EXAMPLES / "own_loop.py", "eager").stdout)
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 1.2


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
def test_a_llama_of_transformers_learns_to_count() -> None:
    text = run(sys.executable, EXAMPLES / "transformers_llama.py", "eager").stdout
    losses = losses_of(text)
    assert losses[0] > 4.5, "log(128) is 4.85"
    assert losses[-1] < losses[0] / 2
    assert float(text.split("held-out loss ")[1]) < losses[0] / 2


def test_two_ranks_by_torchrun_learn() -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    rendezvous = ["--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    text = run(sys.executable, *torchrun, *rendezvous, EXAMPLES / "two_ranks.py", "eager").stdout
    assert "shards: P 1 | G 1 | OS 2" in text
    losses = losses_of(text)
    assert len(losses) == 5, "rank 0 alone speaks"
    assert losses[-1] < losses[0] / 3
    assert "6 whole parameters" in text


@pytest.mark.slow
def test_the_compiler_says_what_it_does() -> None:
    lines = run(sys.executable, EXAMPLES / "own_loop.py").stdout.splitlines()
    assert lines[0] == "compiling 5 regions"
    assert re.fullmatch(r"compiled 5 regions, (cold, .*; cached for next time|warm, .*)", lines[1])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_a_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_a_script_that_forgets_to_close_ends_well() -> None:
    script = (
        "import torch; from internevo_engine import Engine; from tests.graph.models import Stack, mean_square\n"
        "engine = Engine(Stack(), mean_square, steps=3, graph={'compile': 'eager'})\n"
        "print(engine.step([torch.ones(4, 8)]).loss > 0)"
    )
    assert run(sys.executable, "-c", script).stdout == "True\n"


# The two ways to do a step.


def outcome(engine: Engine[Any]) -> dict[str, Tensor]:
    state = engine.state_dict()
    engine.close()
    return state


def train_both_ways(place: Place, keys: dict[str, Any]) -> None:
    whole, parts = (engine_of(tied(), **keys) for _ in range(2))
    for step in range(STEPS):
        data = batches(step, place.rank, place.world)
        result = whole.step(data)
        losses = [parts.forward_backward(each) for each in data]
        assert parts.optimizer_step() == result
        if place.world == 1:
            means = [masked_loss(tied(), each) for each in data] if step == 0 else []
            for loss, (total, count) in zip(losses, means, strict=False):
                torch.testing.assert_close(loss, (total / count).detach())
    expected, found = outcome(whole), outcome(parts)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(found["head.weight"], tied().head.weight), "it has trained"


WAYS = [
    {},
    {"graph": {"mode": "hooks"}},
    {"comm": {"reduction": "ordered", "bucket_mb": 0.01}},
]


@pytest.mark.parametrize("keys", WAYS, ids=["graph", "hooks", "ordered"])
def test_a_loop_of_ones_own_has_the_bits_of_step(keys: dict[str, Any]) -> None:
    train_both_ways(Place(0, 1, 0, 1, ""), keys)


def plain_losses(model: nn.Module, loss_fn: Any) -> list[float]:
    """torch's AdamW and clip on the mean over all that is counted; decay for matrices only, a cosine by hand."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups: list[Any] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step in range(STEPS):
        results = [loss_fn(model, each) for each in batches(step)]
        pairs = [result if isinstance(result, tuple) else (result, 1) for result in results]
        loss = torch.stack([total for total, _ in pairs]).sum() / sum(count for _, count in pairs)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in adamw.param_groups:
            group["lr"] = 1e-3 + (1e-2 - 1e-3) * (1 + torch.cos(torch.tensor(torch.pi * (step + 1) / STEPS)).item()) / 2
        adamw.step()
        losses.append(loss.item())
    return losses


def mean_loss(model: nn.Module, data: Batch) -> Tensor:
    return F.cross_entropy(model(data["tokens"]).flatten(0, 1), data["labels"].flatten())


@pytest.mark.parametrize("mode", ["graph", "hooks"])
@pytest.mark.parametrize("loss_fn", [masked_loss, mean_loss], ids=["sum and count", "mean"])
def test_tied_frozen_and_unused_parameters_train_as_in_torch(loss_fn: Any, mode: str) -> None:
    engine = engine_of(tied(), loss_fn, graph={**EAGER, "mode": mode})
    results = [engine.step(batches(step)) for step in range(STEPS)]
    assert [result.loss for result in results] == pytest.approx(plain_losses(tied(), loss_fn), rel=1e-5)
    if loss_fn is mean_loss:
        assert results[0].tokens == GRAD_ACCUM


# Two ranks.


def train_all_both_ways(place: Place) -> None:
    for sizes in ({"optim": 2}, {"param": 2, "grad": 2, "optim": 2}):
        for keys in WAYS:
            if "param" not in sizes or "graph" not in keys:
                train_both_ways(place, {**keys, "zero": sizes})


def weights_of_an_engine_from_other_weights(place: Place) -> dict[str, Tensor]:
    engine = engine_of(tied(seed=place.rank), zero={"param": 2, "grad": 2, "optim": 2})
    return outcome(engine)


def losses_of_two_engines(place: Place, *, interleaved: bool) -> list[float]:
    engines = [engine_of(tied(), zero={"optim": 2}), engine_of(tied(1), mean_loss, graph={"mode": "hooks"})]
    losses: list[float] = []
    for data in (batches(step, place.rank, 2) for step in range(STEPS)):
        if interleaved:
            for each in data:
                for engine in engines:
                    engine.forward_backward(each)
            losses += [engine.optimizer_step().loss for engine in engines]
        else:
            losses += [engine.step(data).loss for engine in engines]
    for engine in engines:
        engine.close()
    return losses


def disagree(place: Place) -> str:
    with pytest.raises(RanksDisagreeError) as error:
        engine_of(tied(), optim={**OPTIM, "clip": 1.0 + place.rank})
    return str(error.value)


@dataclass(frozen=True)
class Seen:
    """By one of two ranks."""

    weights: dict[str, Tensor]
    apart: list[float]
    interleaved: list[float]
    disagreement: str


def live_on_two_ranks(place: Place) -> Seen:
    """One process for all: starting ranks costs more than all that they do here."""
    train_all_both_ways(place)
    return Seen(
        weights_of_an_engine_from_other_weights(place),
        losses_of_two_engines(place, interleaved=False),
        losses_of_two_engines(place, interleaved=True),
        disagree(place),
    )


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    return run_ranks(live_on_two_ranks, 2, tmp_path_factory.mktemp("ranks"))


def test_on_two_ranks_too_a_loop_of_ones_own_has_the_bits_of_step(two_ranks: list[Seen]) -> None:
    assert len(two_ranks) == 2, "each compared its engines"


def test_every_rank_gets_the_parameters_of_rank_0(two_ranks: list[Seen]) -> None:
    for seen in two_ranks:
        assert all(torch.equal(seen.weights[name], tensor) for name, tensor in tied(seed=0).state_dict().items())


def test_two_engines_live_in_one_process(two_ranks: list[Seen]) -> None:
    for seen in two_ranks:
        assert seen.apart == seen.interleaved
        assert len(set(seen.apart)) == 2 * STEPS


def test_ranks_with_different_settings_are_told(two_ranks: list[Seen]) -> None:
    for rank, seen in enumerate(two_ranks):
        assert seen.disagreement.startswith(f"rank {rank} would run another plan than rank {1 - rank}: line ")
        assert "clip=1.0" in seen.disagreement
        assert "clip=2.0" in seen.disagreement


# Mistakes.


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_calls_in_the_wrong_order_are_refused_and_lose_nothing(mode: str) -> None:
    engine, other = (engine_of(tied(), graph={**EAGER, "mode": mode}) for _ in range(2))
    first, second = batches(0)
    with pytest.raises(UsageError, match=r"step\(\) got 1 micro-batches; grad_accum=2: pass 2"):
        engine.step([first])
    with pytest.raises(UsageError, match=r"optimizer_step\(\) after 0 of grad_accum=2"):
        engine.optimizer_step()
    engine.forward_backward(first)
    with pytest.raises(UsageError, match=r"optimizer_step\(\) after 1 of grad_accum=2 micro-batches; call forward_b"):
        engine.optimizer_step()
    with pytest.raises(UsageError, match=r"step\(\) after 1 of grad_accum=2 micro-batches went through"):
        engine.step([first, second])
    engine.forward_backward(second)
    with pytest.raises(UsageError, match=r"once more after grad_accum=2; call optimizer_step\(\) first"):
        engine.forward_backward(second)
    assert engine.optimizer_step() == other.step([first, second])


def test_a_batch_of_another_shape_is_refused_and_loses_nothing() -> None:
    engine, other = (engine_of(tied(), graph=EAGER) for _ in range(2))
    first, second = batches(0)
    engine.forward_backward(first)
    with pytest.raises(UsageError, match=r"batch.tokens is torch.int64 \(2, 9\), .* for torch.int64 \(2, 7\); give"):
        engine.forward_backward(batch(0, length=9))
    with pytest.raises(UsageError, match=r"a batch of tokens with nothing else .* captured for tokens, labels, weigh"):
        engine.forward_backward({"tokens": first["tokens"]})
    engine.forward_backward(second)
    assert engine.optimizer_step() == other.step([first, second])


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"Engine: optim.lrr: unknown key; did you mean optim.lr\?"):
        engine_of(tied(), optim={"lrr": 1e-3})
    with pytest.raises(ConfigError, match=r"Engine: grad_accum: should be greater than 0, found 0"):
        engine_of(tied(), grad_accum=0)
    with pytest.raises(ConfigError, match=r"zero.optim=2 does not divide world=1"):
        engine_of(tied(), zero={"optim": 2})


def test_sections_are_objects_too() -> None:
    engine = engine_of(tied(), optim=OptimConfig(lr=0.5))
    assert engine.plan.config.optim == OptimConfig(lr=0.5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2).requires_grad_(False), "no parameter with requires_grad=True"),
        (nn.Linear(2, 2).double(), "weight is torch.float64 on cpu; the engine trains fp32 and bf16 on cpu and cuda"),
        (nn.Linear(2, 2, device="meta"), "weight is torch.float32 on meta; the engine trains"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16()), "0.weight is torch.float32 .* 1.weight is"),
    ],
    ids=["frozen", "double", "meta", "mixed"],
)
def test_a_model_that_can_not_be_taken_over_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_of(model)


def test_a_step_without_finite_numbers_leaves_an_engine_that_goes_on() -> None:
    engine, other = (engine_of(nn.Linear(3, 1), mean_square, grad_accum=1, optim={"lr": 1e-3}) for _ in range(2))
    other.model.load_state_dict(engine.state_dict())
    engine.forward_backward(torch.full((2, 3), torch.inf))
    with pytest.raises(NumbersError):
        engine.optimizer_step()
    assert engine.step([torch.ones(2, 3)]) == other.step([torch.ones(2, 3)])


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if y.sum() > 0:
            y = y * 2
        return y


def test_a_module_that_breaks_the_graph_is_named_by_its_line_and_trains_with_hooks() -> None:
    data = [torch.ones(5, 8)] * GRAD_ACCUM
    with pytest.raises(CaptureError) as error:
        engine_of(Branching(), mean_square).step(data)
    line = Path(__file__).read_text().splitlines().index("        if y.sum() > 0:") + 1
    assert f"{__file__}:{line}: if y.sum() > 0:: " in str(error.value)
    engine = engine_of(Branching(), mean_square, graph={"mode": "hooks"})
    assert engine.program is None
    assert engine.step(data).loss > engine.step(data).loss


# What an engine shows, and what it leaves alone.


def test_capture_waits_for_the_first_batch_or_takes_the_example() -> None:
    engine = engine_of(tied())
    assert engine.program is None
    assert engine.plan.memory.activations == 0
    engine.step(batches(0))
    assert engine.program is not None
    assert engine.program.micro_batches == GRAD_ACCUM
    assert engine.plan.memory.activations > 0
    assert engine_of(tied(), example=batch(0)).program == engine.program


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_evaluation_is_without_dropout_and_leaves_the_modes_alone(mode: str) -> None:
    model = Stack()
    model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    engine = engine_of(model, mean_square, graph={**EAGER, "mode": mode})
    total, count = engine.evaluate([torch.ones(5, 8), torch.ones(3, 8)])
    model.eval()
    expected = sum(mean_square(model, torch.ones(rows, 8)).item() for rows in (5, 3))
    assert (total, count) == (pytest.approx(expected), 2)
    model.train()
    engine.evaluate([])
    assert all(module.training for module in model.modules())
    assert modes.count(False) == 4


def test_state_dict_is_a_copy_that_the_module_loads() -> None:
    engine = engine_of(tied())
    engine.step(batches(0))
    state = engine.state_dict()
    kept = state["head.weight"].clone()
    engine.step(batches(1))
    assert torch.equal(state["head.weight"], kept)
    fresh = tied(seed=1)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.embedding.weight, kept)


def test_an_engine_leaves_random_numbers_logging_and_signals_alone() -> None:
    import logging

    def seen() -> tuple[Any, ...]:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return logging.root.level, list(logging.root.handlers), handlers, torch.get_num_threads()

    model, before, random = tied(), seen(), torch.get_rng_state()
    engine = engine_of(model, example=batch(0))
    engine.step(batches(0))
    engine.close()
    assert seen() == before
    assert torch.equal(torch.get_rng_state(), random)


def count_in_the_batch(model: nn.Module, data: Batch) -> tuple[Tensor, Tensor]:
    return masked_loss(model, data)[0], data["number"]


def test_the_count_may_be_part_of_the_batch() -> None:
    data = [{**each, "number": torch.tensor(10 * (n + 1))} for n, each in enumerate(batches(0))]
    whole, parts = (engine_of(tied(), count_in_the_batch) for _ in range(2))
    for each in data:
        parts.forward_backward(each)
    assert whole.step(data) == parts.optimizer_step()


def test_a_schedule_without_an_end_is_refused_and_a_plain_rate_stays():
    with pytest.raises(ConfigError, match=r"optim.schedule needs an end of the schedule; pass steps="):
        Engine(nn.Linear(2, 1), lambda model, x: model(x).sum(), optim={"schedule": "wsd"})
    engine = Engine(nn.Linear(2, 1), lambda model, x: model(x).sum(), optim={"lr": 1e-3}, graph={"mode": "hooks"})
    assert [engine.step([torch.ones(1, 2)]).lr for _ in range(3)] == [1e-3] * 3
    engine.close()
