"""The engine against the obvious: a plain PyTorch loop in one process, of ours only the model.

Documents of very different lengths; the plain loop runs each on its own, unpacked, and adds up the loss.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import cross_entropy

from internevo_engine.config.schema import (
    CommConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ZeroConfig,
)
from internevo_engine.data.packing import MicroBatch
from internevo_engine.engine import Engine
from internevo_engine.errors import DataError, NumbersError
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE, Place
from tests.ranks import run_ranks

VOCAB, SEQ_LEN, STEPS, SEED = 61, 64, 50, 3
MICRO_BATCHES = 4
LENGTHS = ((64,), (1, 40, 2, 21), (7, 7, 50), (33, 31))
"""Document lengths of the micro-batches of one step; each fills 64 tokens."""


def config(
    *, grad_accum: int = 1, micro_batch: int = 1, optim_group: int = 1, bucket_mb: float = 0.05, **comm
) -> Config:
    return Config(
        model=ModelConfig(
            family="internlm", vocab=VOCAB, layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, init_std=0.1
        ),
        data=DataConfig(seq_len=SEQ_LEN, micro_batch=micro_batch, grad_accum=grad_accum),
        optim=OptimConfig(lr=1e-3, eta_min=1e-4, warmup_ratio=0.1),
        zero=ZeroConfig(optim=optim_group),
        comm=CommConfig(bucket_mb=bucket_mb, **comm),
        run=RunConfig(steps=STEPS, seed=SEED),
    )


def documents(step: int, number: int) -> Iterator[torch.Tensor]:
    """Learnable text: each document counts in steps of its own through the vocabulary."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    for length in LENGTHS[number]:
        start, stride = torch.randint(0, VOCAB, (2,), generator=generator).tolist()
        yield (start + (stride % 2 + 1) * torch.arange(length + 1)) % VOCAB


def pack(texts: list[torch.Tensor]) -> MicroBatch:
    lengths = torch.tensor([len(text) - 1 for text in texts])
    return MicroBatch(
        tokens=torch.cat([text[:-1] for text in texts]),
        labels=torch.cat([text[1:] for text in texts]),
        positions=torch.cat([torch.arange(int(length)) for length in lengths]),
        cu_seqlens=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
    )


def model_of(cfg: Config) -> torch.nn.Module:
    return build(cfg.model, SEQ_LEN, torch.float32, torch.device("cpu"), SEED)


@dataclass
class Outcome:
    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]


def plain_loop() -> Outcome:
    """Autograd, torch.optim.AdamW, clip_grad_norm_; one document at a time."""
    cfg = config()
    model = model_of(cfg)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optim = cfg.optim
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    losses, norms = [], []
    for step in range(STEPS):
        texts = [text for number in range(MICRO_BATCHES) for text in documents(step, number)]
        adamw.zero_grad()
        total, count = 0.0, sum(len(text) - 1 for text in texts)
        for text in texts:
            inputs, boundaries = text[:-1], torch.tensor([0, len(text) - 1], dtype=torch.int32)
            logits = model(inputs, torch.arange(len(inputs)), boundaries)
            loss = cross_entropy(logits, text[1:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip).item())
        losses.append(total)
        set_rate(adamw, step, optim)
        adamw.step()
    return Outcome(losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()})


def engine_loop(place: Place, cfg: Config, *, merged: bool = False) -> Outcome:
    torch.manual_seed(place.rank)  # nothing may depend on it
    plan = make_plan(cfg, parameters(cfg.model), Topology(place.world, place.world, "cpu"))
    communicator = Communicator(place, torch.device("cpu"), plan.optim_group)
    model = model_of(cfg)
    engine = Engine(model, token_loss, plan, communicator)
    losses, norms = [], []
    for step in range(STEPS):
        numbers = range(place.rank, MICRO_BATCHES, place.world)
        texts = [list(documents(step, number)) for number in numbers]
        batches = [pack([t for ts in texts for t in ts])] if merged else [pack(ts) for ts in texts]
        result = engine.step(batches)
        losses.append(result.loss)
        norms.append(result.grad_norm)
    engine.close()
    return Outcome(losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()})


@pytest.fixture(scope="module")
def oracle() -> Outcome:
    torch.set_num_threads(1)
    return plain_loop()


def assert_equal(outcome: Outcome, oracle: Outcome) -> None:
    assert outcome.losses == pytest.approx(oracle.losses, rel=1e-5)
    assert outcome.norms == pytest.approx(oracle.norms, rel=1e-4)
    for name, weight in oracle.weights.items():
        difference = (outcome.weights[name] - weight).norm() / weight.norm()
        assert difference < 1e-5, f"{name}: {difference:.2e}"


def test_the_plain_loop_learns(oracle):
    assert oracle.losses[0] - oracle.losses[-1] > 1.0


@pytest.mark.parametrize(("world", "grad_accum"), [(1, 4), (2, 2), (4, 1)])
def test_any_number_of_ranks_equals_the_plain_loop(oracle, tmp_path, world, grad_accum):
    for outcome in run_ranks(engine_loop, world, tmp_path, config(grad_accum=grad_accum)):
        assert_equal(outcome, oracle)


def test_one_large_micro_batch_equals_accumulation(oracle):
    assert_equal(engine_loop(ALONE, config(micro_batch=4), merged=True), oracle)


@pytest.mark.parametrize(("world", "optim_group", "overlap"), [(2, 2, True), (4, 2, True), (4, 4, False)])
def test_sharded_optimizer_states_equal_the_plain_loop(oracle, tmp_path, world, optim_group, overlap):
    cfg = config(grad_accum=MICRO_BATCHES // world, optim_group=optim_group, overlap=overlap)
    for outcome in run_ranks(engine_loop, world, tmp_path, cfg):
        assert_equal(outcome, oracle)


def test_numbers_that_are_not_finite_stop_before_the_update():
    cfg = config()
    plan = make_plan(cfg, parameters(cfg.model), Topology(1, 1, "cpu"))
    model = model_of(cfg)
    engine = Engine(model, token_loss, plan, Communicator(ALONE, torch.device("cpu"), 1))
    engine.step([pack(list(documents(0, 0)))])
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        model.get_parameter("norm.weight")[0] = float("nan")
    with pytest.raises(NumbersError, match="step 1: loss is nan.*not applied"):
        engine.step([pack(list(documents(1, 0)))])
    assert sum(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)) == 1


def test_a_step_without_valid_tokens_is_refused():
    cfg = config()
    plan = make_plan(cfg, parameters(cfg.model), Topology(1, 1, "cpu"))
    engine = Engine(model_of(cfg), token_loss, plan, Communicator(ALONE, torch.device("cpu"), 1))
    batch = pack(list(documents(0, 0)))
    batch.labels.fill_(-100)
    with pytest.raises(DataError, match="no valid token"):
        engine.step([batch])


def set_rate(adamw: torch.optim.Optimizer, step: int, optim: OptimConfig) -> None:
    """The schedule written out once more: linear over 5 steps, then cosine that ends at eta_min with the last step."""
    progress = torch.tensor((step - 4) / (STEPS - 5), dtype=torch.float64)
    cosine = optim.eta_min + (optim.lr - optim.eta_min) * (1 + torch.cos(torch.pi * progress).item()) / 2
    for group in adamw.param_groups:
        group["lr"] = optim.lr * (step + 1) / 5 if step < 5 else cosine
