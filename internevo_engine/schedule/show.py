"""schedule: `python -m internevo_engine show program CONFIG`: a config's Program for any world, without running it."""

from internevo_engine.config.schema import Config
from internevo_engine.data.packing import RandomCorpus
from internevo_engine.graph.capture import capture
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import TORCH_DTYPES, on_meta
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Program
from internevo_engine.schedule.graph_spec import GraphSpec
from internevo_engine.schedule.lower import lower
from internevo_engine.schedule.step_program import modelled_costs, program_of_spec, recompute_of


def program_of(config: Config, topology: Topology) -> Program:
    """Plan, capture on meta tensors and schedule; no parameter is ever allocated.

    Raises:
        PlanError, CaptureError: the config can't be planned or captured.
    """
    plan = make_plan(config, parameters(config.model, config.lora), topology)
    return program_of_spec(plan, capture_spec(config, plan.dtype), modelled_costs(plan))


def capture_spec(config: Config, dtype: str) -> GraphSpec:
    """One micro-batch of a config's decoder, captured on meta tensors.

    Raises:
        CaptureError: the config can't be captured.
    """
    model = on_meta(config.model, config.data.seq_len, TORCH_DTYPES[dtype], config.lora)
    shape = {"seq_len": config.data.seq_len, "micro_batch": config.data.micro_batch}
    example = RandomCorpus(config.model.vocab, **shape, seed=config.run.seed).micro_batch(0, 0, 1)
    return lower(capture(model, token_loss, example, recompute=recompute_of(config.graph)))
