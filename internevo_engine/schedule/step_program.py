"""schedule: the Program of a plan and a captured step, the one that every rank makes for itself and compares."""

from internevo_engine.config.schema import GraphConfig, RecomputeBudget
from internevo_engine.graph.recompute import MemoryBudget, Recompute
from internevo_engine.graph.step_graph import StepGraph
from internevo_engine.plan.memory import DTYPE_BYTES
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Program
from internevo_engine.schedule.costs import MODELLED, CostTable, Prices
from internevo_engine.schedule.graph_spec import GraphSpec
from internevo_engine.schedule.lower import lower
from internevo_engine.schedule.make_program import make_header, make_program


def step_program(plan: Plan, graph: StepGraph, costs: CostTable) -> Program:
    """Schedule one step of `plan`. Pure: equal arguments give an equal Program on every rank.

    Raises:
        ProgramError: the checker refuses the result.
    """
    return program_of_spec(plan, lower(graph), costs)


def program_of_spec(plan: Plan, spec: GraphSpec, costs: Prices) -> Program:
    """The same for a graph that was lowered before."""
    header = make_header(
        spec,
        plan.buckets,
        plan.levels,
        world=plan.topology.world,
        micro_batches=plan.config.grad_accum,
        mode=plan.mode,
        param_bytes=DTYPE_BYTES[plan.dtype],
        wire_bytes=DTYPE_BYTES[plan.config.comm.wire],
    )
    return make_program(header, spec, costs, overlap=plan.config.comm.overlap)


def recompute_of(graph: GraphConfig) -> Recompute:
    """graph.recompute as capture takes it."""
    asked = graph.recompute
    return MemoryBudget(int(asked.budget_gb * 1e9)) if isinstance(asked, RecomputeBudget) else asked


def modelled_costs(plan: Plan) -> CostTable:
    """Rates of the kind of device that the plan is for, there or not; runtime/measure.py has those of this one."""
    return MODELLED[{"cpu": "cpu", "cuda": "a100"}[plan.topology.device]]


def first_difference(mine: str, other: str) -> str:
    """The first line in which the texts of two Programs part."""
    for number, (left, right) in enumerate(zip(mine.splitlines(), other.splitlines(), strict=False), start=1):
        if left != right:
            return f"line {number}: {' '.join(left.split())!r} here, {' '.join(right.split())!r} there"
    return f"{len(mine.splitlines())} lines here, {len(other.splitlines())} there"
