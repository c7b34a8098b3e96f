"""plan: which Hybrid-ZeRO plan is best on a cluster. Takes a config, a cluster and a `price`, hands on a `Choice`.

Tried are group sizes x recomputation x splits of a rank's tokens into micro-batches x bucket sizes; the tokens of a
step stay what the config says. Memory comes first; what fits is ranked by plan/estimate.py; the simplest of the best
are priced (by schedule/forecast.py: their Programs, simulated), and the least pessimistic end of a band wins, for a
planner must not live on a constant that the data does not pin down.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from internevo_engine.config.schema import Config, ZeroConfig
from internevo_engine.errors import MemoryNeededError, PlanError
from internevo_engine.plan.calibrate import NOISE, Band
from internevo_engine.plan.cluster import Cluster
from internevo_engine.plan.cost import Calibration
from internevo_engine.plan.estimate import Estimate, Workload, estimate
from internevo_engine.plan.hybrid_zero import GroupSizes
from internevo_engine.plan.levels import levels
from internevo_engine.plan.memory import decoder_activations, forecast_states
from internevo_engine.plan.params import Param
from internevo_engine.plan.plan import USABLE_SHARE, resolve_dtype
from internevo_engine.plan.reduction import reduction_mode
from internevo_engine.units import divisors, format_bytes, format_seconds

Price = Callable[[Config], Band]
"""Seconds of a step of a config whose group sizes are numbers, with its band."""
RECOMPUTE = ("none", "selective", "full")
BUCKETS_MB = (64.0, 256.0)
NUM_PRICED = 4
"""Plans that are simulated, of those with the least estimates."""
CLOSE = NOISE
"""Plans that differ by less than a prediction's own error are alike; of them the one with the smallest groups is taken,
for it depends on the fewest ranks and links."""


@dataclass(frozen=True)
class Candidate:
    """A way to run the config."""

    config: Config
    sizes: GroupSizes
    memory_bytes: int
    estimate: Estimate

    @property
    def name(self) -> str:
        data = self.config.data
        return (
            f"{self.sizes.param}/{self.sizes.grad}/{self.sizes.optim}, {data.micro_batch} x {data.grad_accum}, "
            f"recompute {self.config.graph.recompute}, buckets {self.config.comm.bucket_mb:g} MB"
        )


@dataclass(frozen=True)
class Priced:
    """A candidate and the band of its step, in seconds."""

    candidate: Candidate
    step_s: Band


@dataclass(frozen=True)
class Choice:
    """What was chosen, from what, and why the plans that people know by name fell."""

    winner: Priced
    runner_up: Priced | None
    num_tried: int
    num_fitting: int
    fallen: Mapping[str, str]
    """Name of a well-known plan -> why it is not the winner."""


def search(
    config: Config, params: Sequence[Param], cluster: Cluster, world: int, calibration: Calibration, price: Price
) -> Choice:
    """The best plan for `world` ranks.

    Raises:
        MemoryNeededError: nothing fits.
        ConfigError: the cluster has not as many ranks.
    """
    tried = list(candidates(config, params, cluster, world, calibration))
    limit = usable_bytes(cluster)
    fitting = [each for each in tried if each.memory_bytes <= limit]
    if not fitting:
        least = min(tried, key=lambda each: each.memory_bytes)
        raise MemoryNeededError(
            f"no plan fits {world} ranks of {format_bytes(cluster.memory_gb * 1e9)}: the least, {least.name}, needs "
            f"{format_bytes(least.memory_bytes)}; take more ranks, fewer tokens a micro-batch or a smaller model"
        )
    priced = [Priced(each, price(each.config)) for each in _worth_pricing(fitting)]
    best = _simplest(priced)
    for bucket_mb in BUCKETS_MB:
        if bucket_mb != best.candidate.config.comm.bucket_mb:
            other = _with_buckets(best.candidate, bucket_mb)
            priced.append(Priced(other, price(other.config)))
    winner = _simplest(priced)
    others = [each for each in priced if each.candidate.sizes != winner.candidate.sizes]
    runner_up = min(others, key=lambda each: each.step_s.high, default=None)
    return Choice(winner, runner_up, len(tried), len(fitting), dict(_fallen(tried, winner.candidate, cluster, world)))


def usable_bytes(cluster: Cluster) -> float:
    return cluster.memory_gb * 1e9 * USABLE_SHARE


def candidates(
    config: Config, params: Sequence[Param], cluster: Cluster, world: int, calibration: Calibration
) -> Iterator[Candidate]:
    """Every plan that is legal, whether it fits or not."""
    topology = cluster.topology(world)
    dtype = resolve_dtype(config.model, cluster.device)
    trained = sum(param.numel for param in params if param.trained)
    frozen = sum(param.numel for param in params if not param.trained)
    for split in _splits(config):
        for sizes in _group_sizes(world, topology.ranks_per_host):
            trial = _with(split, sizes)
            try:
                digits = levels(sizes.param, sizes.grad, sizes.optim, world, topology.ranks_per_host)
                mode = reduction_mode(trial.step, world)
            except PlanError:
                continue
            job = {"dtype": dtype, "mode": mode, "grad_accum": trial.data.grad_accum, "device": cluster.device}
            states = forecast_states(trained, frozen, sizes=sizes, **job)
            memory = replace(states, **decoder_activations(trial, dtype))
            work = Workload(trial, params, dtype)
            yield Candidate(trial, sizes, memory.total, estimate(work, digits, cluster, calibration, world))


def _splits(config: Config) -> Iterator[Config]:
    """The same tokens a rank, in other micro-batches and with other recomputation."""
    sequences = config.data.micro_batch * config.data.grad_accum
    for micro_batch in divisors(sequences):
        data = config.data.model_copy(update={"micro_batch": micro_batch, "grad_accum": sequences // micro_batch})
        for recompute in RECOMPUTE:
            graph = config.graph.model_copy(update={"recompute": recompute})
            yield config.model_copy(update={"data": data, "graph": graph})


def _group_sizes(world: int, ranks_per_host: int) -> Iterator[GroupSizes]:
    """Powers of two times what divides a host and the world, each dividing the next; G is P or OS."""
    sizes = [size for size in divisors(world) if (size & (size - 1)) == 0 or size % ranks_per_host == 0]
    sizes = [size for size in sizes if size <= ranks_per_host or size == world or _is_power(size // ranks_per_host)]
    for optim in sizes:
        for param in (size for size in sizes if optim % size == 0):
            for grad in dict.fromkeys((param, optim)):
                yield GroupSizes(param, grad, optim)


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0


def _with(config: Config, sizes: GroupSizes) -> Config:
    return config.model_copy(update={"zero": ZeroConfig(param=sizes.param, grad=sizes.grad, optim=sizes.optim)})


def _with_buckets(candidate: Candidate, bucket_mb: float) -> Candidate:
    comm = candidate.config.comm.model_copy(update={"bucket_mb": bucket_mb})
    return replace(candidate, config=candidate.config.model_copy(update={"comm": comm}))


def _worth_pricing(fitting: Sequence[Candidate]) -> list[Candidate]:
    """The simplest of the plans that are estimated close to the best, at most two of the same group sizes."""
    close = (1 + CLOSE) * min(each.estimate.total for each in fitting)
    chosen: list[Candidate] = []
    for each in sorted(fitting, key=lambda each: (max(each.estimate.total, close), _spread(each), each.estimate.total)):
        if sum(other.sizes == each.sizes for other in chosen) < 2:
            chosen.append(each)
        if len(chosen) == NUM_PRICED:
            break
    return chosen


def _simplest(priced: Sequence[Priced]) -> Priced:
    """Of those whose pessimistic ends are close to the least."""
    close = (1 + CLOSE) * min(each.step_s.high for each in priced)
    return min(
        (each for each in priced if each.step_s.high <= close),
        key=lambda each: (_spread(each.candidate), each.step_s.high),
    )


def _spread(candidate: Candidate) -> tuple[int, int, int]:
    """Ranks that a state depends on, parameters first: they are gathered most often."""
    return candidate.sizes.param, candidate.sizes.grad, candidate.sizes.optim


def _fallen(tried: Sequence[Candidate], winner: Candidate, cluster: Cluster, world: int) -> Iterator[tuple[str, str]]:
    """The best of each well-known plan against the winner, both as estimated."""
    node = min(world, cluster.ranks_per_node)
    known = {
        "replicated (DDP)": GroupSizes(1, 1, 1),
        "OS over a node": GroupSizes(1, 1, node),
        "OS over all (ZeRO-1)": GroupSizes(1, 1, world),
        "G and OS over all (ZeRO-2)": GroupSizes(1, world, world),
        "all over a node (MiCS)": GroupSizes(node, node, node),
        "all over all (ZeRO-3)": GroupSizes(world, world, world),
    }
    limit = usable_bytes(cluster)
    for name, sizes in known.items():
        same = [each for each in tried if each.sizes == sizes]
        if sizes == winner.sizes or not same:
            continue
        fitting = [each for each in same if each.memory_bytes <= limit]
        if not fitting:
            least = min(each.memory_bytes for each in same)
            yield name, f"needs {format_bytes(least)} a rank, {format_bytes(least - limit)} more than there is"
            continue
        best = min(fitting, key=lambda each: each.estimate.total)
        slower = best.estimate.total / winner.estimate.total - 1
        data, exposed = best.config.data, format_seconds(best.estimate.exposed)
        split = f"{data.micro_batch} x {data.grad_accum}, recompute {best.config.graph.recompute}"
        link = best.estimate.slower_link
        alike = "alike, but it needs larger groups; " if slower < CLOSE else ""
        yield name, f"{alike}{slower:+.1%} as {split}: {exposed} of transfers not hidden, most on {link} links"
