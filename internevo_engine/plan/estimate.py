"""plan: the engine's own step in closed form, in microseconds of our time. Hands an `Estimate` to plan/search.py, which
ranks hundreds of plans by it and has only the best simulated.

What a step of the Program (docs in csrc/core/layout.h) sends, over each link, set against the computing beside it:
gathers of sharded parameters beside all of it; the last micro-batch's reductions beside its backward; the refresh of
updated parameters beside the next forward. tests/schedule/test_forecast.py holds it against simulated Programs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from internevo_engine.config.schema import Config, RecomputeBudget
from internevo_engine.plan.cluster import Cluster
from internevo_engine.plan.cost import Calibration, level_rate, matmul_s, memory_s
from internevo_engine.plan.memory import DTYPE_BYTES
from internevo_engine.plan.params import Param
from internevo_engine.program import Level, Link

ELEMENTWISE_BYTES = 48
"""Of a layer's forward, for a token and unit of width, in bf16: norms, rotary embedding, residuals, the gate."""
LOGITS_BYTES = 18
"""Of the loss, forward and backward, for a token and entry of the vocabulary."""
UPDATE_BYTES = 28
"""Of AdamW for an owned element, the write of the parameter apart (csrc/core/costs.cpp)."""
LINKS: tuple[Link, ...] = ("near", "far")


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step, by what they are spent on; of transfers only what is not hidden."""

    compute: float
    gather: float
    reduce: float
    refresh: float
    update: float
    slower_link: Link
    """The link on which the exposed transfers spend most."""

    @property
    def total(self) -> float:
        return self.compute + self.exposed + self.update

    @property
    def exposed(self) -> float:
        return self.gather + self.reduce + self.refresh


@dataclass(frozen=True)
class Workload:
    """A model's step, apart from where it runs."""

    config: Config
    params: Sequence[Param]
    dtype: str

    @property
    def numel(self) -> int:
        return sum(param.numel for param in self.params)

    @property
    def num_buckets(self) -> int:
        return max(1, round(self.numel * 4 / (self.config.comm.bucket_mb * 1e6)))

    @property
    def forward_flops(self) -> float:
        """Of one micro-batch: matrices but for the embedding's lookup, and the causal half of the attention."""
        model, tokens = self.config.model, self.config.micro_batch_tokens
        lookup = 0 if model.tie_embeddings else model.vocab * model.hidden
        matrices = sum(param.numel for param in self.params if param.is_matrix) - lookup
        return 2 * matrices * tokens + 2 * model.layers * model.hidden * self.config.data.seq_len * tokens

    @property
    def repeated(self) -> float:
        """Share of the forward pass that the backward repeats."""
        asked = self.config.graph.recompute
        if isinstance(asked, RecomputeBudget):
            return 0.5
        if isinstance(asked, str):
            return {"none": 0.0, "selective": 0.0, "full": 1.0}[asked]
        return asked


def estimate(
    work: Workload, levels: Sequence[Level], cluster: Cluster, calibration: Calibration, world: int
) -> Estimate:
    """The step of `world` ranks whose states are cut along `levels`."""
    forward, backward = _micro_batch_s(work, cluster, calibration, world)
    rounds, size = work.config.data.grad_accum, DTYPE_BYTES[work.dtype]
    wire = DTYPE_BYTES[work.config.comm.wire]
    gather = _sent_s(work, levels, ("P",), size, 2 * rounds, cluster, calibration)
    every_round = _sent_s(work, levels, ("P", "G"), wire, rounds, cluster, calibration)
    at_the_end = _sent_s(work, levels, ("OS", "R"), wire, 1, cluster, calibration)
    refresh = _sent_s(work, levels, ("G", "OS"), size, 1, cluster, calibration)
    last = {link: every_round[link] / rounds + at_the_end[link] for link in LINKS}
    early = {link: gather[link] + every_round[link] * (1 - 1 / rounds) for link in LINKS}
    tail = 1 / work.num_buckets
    compute = rounds * (forward + backward)
    exposed = {
        "reduce": {link: max(last[link] - backward, last[link] * tail) for link in LINKS},
        "refresh": {link: max(refresh[link] - forward, refresh[link] * tail) for link in LINKS},
    }
    hidden = {link: last[link] + refresh[link] - sum(each[link] for each in exposed.values()) for link in LINKS}
    exposed["gather"] = {link: max(0.0, early[link] + hidden[link] - compute) for link in LINKS}
    by_link = {link: sum(times[link] for times in exposed.values()) for link in LINKS}
    shards = 1
    for level in levels:
        shards *= 1 if level.state == "R" else level.size
    return Estimate(
        compute=compute,
        **{name: max(times.values()) for name, times in exposed.items()},
        update=memory_s((UPDATE_BYTES + size + 4) * work.numel / shards, cluster),
        slower_link=max(LINKS, key=lambda link: by_link[link]),
    )


def _micro_batch_s(work: Workload, cluster: Cluster, calibration: Calibration, world: int) -> tuple[float, float]:
    """Seconds of forward and backward of the slowest rank."""
    model, tokens = work.config.model, work.config.micro_batch_tokens
    scale = DTYPE_BYTES[work.dtype] / 2
    products = matmul_s(work.forward_flops, tokens, cluster, calibration)
    forward = products + memory_s(ELEMENTWISE_BYTES * scale * model.layers * model.hidden * tokens, cluster)
    logits = memory_s(LOGITS_BYTES * model.vocab * tokens, cluster)
    waiting = calibration.waiting(world)
    return forward * waiting, ((2 + work.repeated) * forward + logits) * waiting


def _sent_s(
    work: Workload,
    levels: Sequence[Level],
    states: Sequence[str],
    size: int,
    times: int,
    cluster: Cluster,
    calibration: Calibration,
) -> dict[Link, float]:
    """Seconds in which each link carries `times` transfers of everything over the levels of these states."""
    seconds = dict.fromkeys(LINKS, 0.0)
    left = work.numel * size
    for level in levels:
        passes = 2 if level.state == "R" else 1
        if level.state in states:
            latency, rate = level_rate(level, passes, left / work.num_buckets, cluster, calibration)
            sent = passes * left * (level.size - 1) / level.size
            seconds[level.link] += times * (work.num_buckets * latency + sent / rate)
        if level.state != "R":
            left /= level.size
    return seconds
