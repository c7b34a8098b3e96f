"""schedule: what a config's step takes on a cluster, before anything is run. Plans, takes the captured graph,
schedules, simulates; hands on a `Forecast`. The planner's prices come from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from internevo_engine.config.schema import Config
from internevo_engine.models.families import parameters
from internevo_engine.models.flops import model_flops
from internevo_engine.plan.calibrate import Band, Ensemble, fit
from internevo_engine.plan.closed_form import System
from internevo_engine.plan.cluster import Cluster
from internevo_engine.plan.cost import AS_MEASURED, Calibration
from internevo_engine.plan.plan import Plan, make_plan
from internevo_engine.plan.score import internevo_runs, published_runs
from internevo_engine.plan.search import Choice, search
from internevo_engine.program import Program
from internevo_engine.schedule.captured import captured
from internevo_engine.schedule.cluster_costs import ClusterCosts
from internevo_engine.schedule.report import Span
from internevo_engine.schedule.simulate import Cause, Simulator, causes
from internevo_engine.schedule.step_program import program_of_spec

MEASURED_ERROR = 0.08
"""Relative error of a prediction from measured rates that the band allows."""


@dataclass(frozen=True)
class Forecast:
    """A step of one config on one cluster."""

    plan: Plan
    program: Program
    spans: tuple[Span, ...]
    """When each instruction runs, with the middle calibration; by number."""
    step_s: Band
    causes: Mapping[Cause, float]
    """Seconds of the step at the middle of the band, by what they are spent on."""
    tokens_per_rank: int
    """In a step."""
    mfu: float
    """Model FLOPs over peak FLOPs, at the middle."""

    @property
    def tokens_per_rank_s(self) -> Band:
        step = self.step_s
        return Band(
            self.tokens_per_rank / step.middle, self.tokens_per_rank / step.high, self.tokens_per_rank / step.low
        )


def calibration_of(cluster: Cluster) -> Ensemble:
    """What is known of such a cluster: its own measurements, or what InternEvo's published runs fix."""
    if cluster.is_measured:
        return Ensemble((System(**vars(AS_MEASURED)),), MEASURED_ERROR, ())
    return fit(internevo_runs(published_runs()))


def forecast(config: Config, cluster: Cluster, world: int, ensemble: Ensemble) -> Forecast:
    """Simulate a step of `world` ranks with every member of the ensemble.

    Raises:
        ConfigError, PlanError, CaptureError: the config can't be planned or captured.
    """
    plan = make_plan(config, parameters(config.model, config.lora), cluster.topology(world))
    spec = captured(config, plan.dtype)

    bucket_bytes = 4 * sum(bucket.numel for bucket in plan.trained_buckets) / len(plan.trained_buckets)

    def prices(calibration: Calibration) -> ClusterCosts:
        return ClusterCosts(cluster, calibration, config.micro_batch_tokens, bucket_bytes, world)

    program = program_of_spec(plan, spec, prices(ensemble.middle))
    simulator = Simulator(program, spec)
    spans = simulator.run(prices(ensemble.middle))
    step_s = Band.of([simulator.step_s(prices(member)) for member in ensemble.members], ensemble.residual)
    tokens = config.micro_batch_tokens * config.data.grad_accum
    flops = model_flops(config.model, tokens, tokens * config.data.seq_len)
    return Forecast(
        plan=plan,
        program=program,
        spans=tuple(spans),
        step_s=step_s,
        causes={cause: time / 1e9 for cause, time in causes(program, spans).items()},
        tokens_per_rank=tokens,
        mfu=flops / (step_s.middle * cluster.peak_tflops * 1e12),
    )


def choose(config: Config, cluster: Cluster, world: int, ensemble: Ensemble) -> Choice:
    """The planner, with simulated Programs as prices.

    Raises:
        MemoryNeededError: nothing fits.
    """
    return search(
        config,
        parameters(config.model, config.lora),
        cluster,
        world,
        ensemble.middle,
        price=lambda trial: forecast(trial, cluster, world, ensemble).step_s,
    )
