"""The engine against the obvious: a plain PyTorch loop in one process, of ours only the model.

Documents of very different lengths; the plain loop runs each on its own, unpacked, and adds up the loss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from internevo_engine.config.schema import (
    CommConfig,
    Config,
    DataConfig,
    GraphConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ZeroConfig,
)
from internevo_engine.data.packing import MicroBatch
from internevo_engine.engine import Engine
from internevo_engine.errors import DataError, NumbersError, PlanError
from internevo_engine.models.attention import pad_pieces
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.levels import cut, levels_of
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.optimizers import OPTIMIZERS
from tests.ranks import run_ranks

VOCAB, SEQ_LEN, STEPS, SEED = 61, 64, 50, 3
MICRO_BATCHES = 4
LENGTHS = ((64,), (1, 40, 2, 21), (7, 7, 50), (33, 31))
"""Document lengths of the micro-batches of one step, over and over; each fills 64 tokens."""
SHAPE = {"family": "internlm", "vocab": VOCAB, "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48}


Sizes = tuple[int, int, int]
"""Group sizes of P, G and OS."""


def config(
    *,
    sizes: Sizes = (1, 1, 1),
    mode: str = "graph",
    grad_accum: int = 1,
    micro_batch: int = 1,
    bucket_mb: float = 0.05,
    tied: bool = False,
    shape: Mapping[str, object] = SHAPE,
    steps: int = STEPS,
    world_invariant: bool = False,
    **comm: object,
) -> Config:
    return Config(
        model=ModelConfig(init_std=0.1, tie_embeddings=tied, **shape),
        data=DataConfig(seq_len=SEQ_LEN, micro_batch=micro_batch, grad_accum=grad_accum),
        optim=OptimConfig(lr=1e-3, eta_min=1e-4, warmup_ratio=0.1),
        zero=ZeroConfig(param=sizes[0], grad=sizes[1], optim=sizes[2]),
        comm=CommConfig(bucket_mb=bucket_mb, **comm),
        graph=GraphConfig(mode=mode, compile="eager"),
        run=RunConfig(steps=steps, seed=SEED, world_invariant=world_invariant),
    )


def documents(step: int, number: int, vocab: int = VOCAB) -> Iterator[torch.Tensor]:
    """Learnable text: each document counts in steps of its own through the vocabulary."""
    generator = torch.Generator().manual_seed(1000 * step + number)
    for length in LENGTHS[number % len(LENGTHS)]:
        start, stride = torch.randint(0, vocab, (2,), generator=generator).tolist()
        yield (start + (stride % 2 + 1) * torch.arange(length + 1)) % vocab


def pack(texts: list[torch.Tensor]) -> MicroBatch:
    lengths = torch.tensor([len(text) - 1 for text in texts])
    boundaries = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    return MicroBatch(
        tokens=torch.cat([text[:-1] for text in texts]),
        labels=torch.cat([text[1:] for text in texts]),
        positions=torch.cat([torch.arange(int(length)) for length in lengths]),
        cu_seqlens=pad_pieces(boundaries, int(lengths.sum()) + 1),
    )


def model_of(cfg: Config) -> torch.nn.Module:
    return build(cfg.model, SEQ_LEN, torch.float32, torch.device("cpu"), SEED)


@dataclass
class Outcome:
    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor] = field(default_factory=dict)
    """Of the optimizer, whole: 'exp_avg norm.weight'."""


def plain_loop(cfg: Config, micro_batches: int = MICRO_BATCHES) -> Outcome:
    """Autograd, torch.optim.AdamW, clip_grad_norm_; one document at a time."""
    model = model_of(cfg)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optim = cfg.optim
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    losses, norms = [], []
    for step in range(cfg.run.steps):
        texts = [text for number in range(micro_batches) for text in documents(step, number, cfg.model.vocab)]
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
        set_rate(adamw, step, cfg)
        adamw.step()
    return Outcome(losses, norms, {name: p.detach().clone() for name, p in model.named_parameters()})


def engine_of(place: Place, cfg: Config, ranks_per_host: int | None = None) -> Engine[MicroBatch]:
    place = replace(place, local_world=ranks_per_host or place.world)
    example = pack([torch.arange(SEQ_LEN * cfg.data.micro_batch + 1)])
    return Engine(model_of(cfg), token_loss, **dict(cfg.step), example=example, place=place)


def engine_loop(
    place: Place,
    cfg: Config,
    *,
    merged: bool = False,
    ranks_per_host: int | None = None,
    steps: int = STEPS,
    watch: Callable[[Engine[MicroBatch]], None] = lambda engine: None,
) -> Outcome:
    """Train, and let `watch` look after every step."""
    torch.manual_seed(place.rank)  # nothing may depend on it
    engine = engine_of(place, cfg, ranks_per_host)
    losses, norms = [], []
    for step in range(steps):
        result = engine.step(micro_batches_of(place, cfg, step, merged=merged))
        losses.append(result.loss)
        norms.append(result.grad_norm)
        watch(engine)
    with engine.whole_parameters():
        weights = {name: p.detach().clone() for name, p in engine.model.named_parameters()}
    outcome = Outcome(losses, norms, weights, whole_states(engine))
    engine.close()
    return outcome


def micro_batches_of(place: Place, cfg: Config, step: int, *, merged: bool = False) -> list[MicroBatch]:
    numbers = range(place.rank, cfg.data.grad_accum * cfg.data.micro_batch * place.world, place.world)
    texts = [list(documents(step, number, cfg.model.vocab)) for number in numbers]
    return [pack([t for ts in texts for t in ts])] if merged else [pack(ts) for ts in texts]


def whole_states(engine: Engine[MicroBatch]) -> dict[str, torch.Tensor]:
    """Every parameter's optimizer states, put together from their owners."""
    plan, communicator = engine.plan, engine._communicator
    cuts = levels_of(plan.levels, ["P", "G", "OS"])
    states = {}
    for shard, bucket in zip(engine.state.shards, plan.buckets, strict=True):
        for name, own in zip(OPTIMIZERS[plan.config.optim.name].states, shard.states, strict=True):
            flat = torch.empty(bucket.numel)
            flat.narrow(0, *cut(communicator.rank, cuts, bucket.numel)).copy_(own)
            communicator.fill(flat, cuts)
            for index, offset in zip(bucket.params, bucket.offsets, strict=True):
                states[f"{name} {plan.params[index].name}"] = flat[offset:][: plan.params[index].numel].clone()
    return states


@pytest.fixture(scope="module")
def oracle() -> Outcome:
    torch.set_num_threads(1)
    return plain_loop(config())


def assert_equal(outcome: Outcome, oracle: Outcome) -> None:
    assert outcome.losses == pytest.approx(oracle.losses, rel=1e-5)
    assert outcome.norms == pytest.approx(oracle.norms, rel=1e-4)
    for name, weight in oracle.weights.items():
        difference = (outcome.weights[name] - weight).norm() / weight.norm()
        assert difference < 1e-5, f"{name}: {difference:.2e}"


def test_the_plain_loop_learns(oracle):
    assert oracle.losses[0] - oracle.losses[-1] > 1.0


@pytest.mark.parametrize("mode", ["graph", "hooks"])
@pytest.mark.parametrize(("world", "grad_accum"), [(1, 4), (2, 2), (4, 1)])
def test_any_number_of_ranks_equals_the_plain_loop(oracle, tmp_path, world, grad_accum, mode):
    for outcome in run_ranks(engine_loop, world, tmp_path, config(grad_accum=grad_accum, mode=mode)):
        assert_equal(outcome, oracle)


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_one_large_micro_batch_equals_accumulation(oracle, mode):
    assert_equal(engine_loop(ALONE, config(micro_batch=4, mode=mode), merged=True), oracle)


@pytest.mark.parametrize(
    ("world", "sizes", "keys"),
    [
        (2, (1, 1, 2), {"mode": "hooks"}),
        (2, (1, 1, 2), {}),
        (2, (2, 2, 2), {"overlap": False}),
        (4, (1, 1, 2), {"mode": "hooks", "overlap": False}),
        (4, (1, 4, 4), {}),
        (4, (1, 2, 4), {}),
        (4, (2, 2, 4), {"reduction": "ordered"}),
        (4, (4, 4, 4), {}),
    ],
)
def test_hybrid_zero_equals_the_plain_loop(oracle, tmp_path, world, sizes, keys):
    cfg = config(grad_accum=MICRO_BATCHES // world, sizes=sizes, **keys)
    for outcome in run_ranks(engine_loop, world, tmp_path, cfg):
        assert_equal(outcome, oracle)


@pytest.mark.parametrize(("mode", "sizes"), [("graph", (1, 1, 2)), ("graph", (2, 2, 2)), ("hooks", (1, 1, 2))])
def test_tied_embeddings_equal_the_plain_loop(tmp_path, mode, sizes):
    tied = plain_loop(config(tied=True))
    for outcome in run_ranks(engine_loop, 2, tmp_path, config(tied=True, grad_accum=2, mode=mode, sizes=sizes)):
        assert_equal(outcome, tied)


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_numbers_that_are_not_finite_stop_before_the_update(mode):
    engine = engine_of(ALONE, config(mode=mode))
    engine.step([pack(list(documents(0, 0)))])
    before = [p.clone() for p in engine.model.parameters()]
    with torch.no_grad():
        engine.model.get_parameter("norm.weight")[0] = float("nan")
    with pytest.raises(NumbersError, match="step 1: loss is nan.*not applied"):
        engine.step([pack(list(documents(1, 0)))])
    assert sum(not torch.equal(a, b) for a, b in zip(before, engine.model.parameters(), strict=True)) == 1


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_a_step_without_valid_tokens_is_refused(mode):
    batch = pack(list(documents(0, 0)))
    batch.labels.fill_(-100)
    with pytest.raises(DataError, match="no valid token"):
        engine_of(ALONE, config(mode=mode)).step([batch])


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"sizes": (2, 2, 2)}, "zero.param=2"),
        ({"sizes": (1, 2, 2)}, "zero.grad=2"),
        ({"reduction": "ordered"}, "comm.red"),
    ],
)
def test_hooks_refuse_what_only_a_captured_step_can_do(keys, named):
    cfg = config(mode="hooks", **keys)
    with pytest.raises(PlanError, match=f"{named}.*needs graph.mode=graph"):
        make_plan(cfg, parameters(cfg.model), Topology(2, 2, "cpu"))


def set_rate(adamw: torch.optim.Optimizer, step: int, cfg: Config) -> None:
    """The schedule written out once more: linear over a tenth of the steps, then cosine to eta_min at the last step."""
    optim, warmup = cfg.optim, cfg.run.steps // 10
    progress = torch.tensor((step + 1 - warmup) / (cfg.run.steps - warmup), dtype=torch.float64)
    cosine = optim.eta_min + (optim.lr - optim.eta_min) * (1 + torch.cos(torch.pi * progress).item()) / 2
    for group in adamw.param_groups:
        group["lr"] = optim.lr * (step + 1) / warmup if step < warmup else cosine
