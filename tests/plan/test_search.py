"""The planner: memory first, then the pessimistic end of what a plan is priced at."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import Config
from internevo_engine.errors import MemoryNeededError
from internevo_engine.models.families import parameters
from internevo_engine.plan.calibrate import Band
from internevo_engine.plan.cluster import PRESETS, Cluster
from internevo_engine.plan.cost import Calibration
from internevo_engine.plan.hybrid_zero import GroupSizes
from internevo_engine.plan.search import Choice, candidates, search, usable_bytes

CONFIG = load_config(str(Path(__file__).parents[2] / "configs/7B.yaml"), [])
A100 = PRESETS["a100-80g-4x100g"]


def estimated(config: Config, cluster: Cluster = A100, world: int = 64) -> Choice:
    """Priced by the estimate itself, with no width."""
    known = {
        (each.sizes, each.config.data.micro_batch, each.config.graph.recompute): each.estimate.total
        for each in candidates(config, parameters(config.model), cluster, world, Calibration())
    }

    def price(trial: Config) -> Band:
        sizes = GroupSizes(*(size for _, size in trial.zero if isinstance(size, int)))
        seconds = known[sizes, trial.data.micro_batch, trial.graph.recompute]
        return Band(seconds, seconds, seconds)

    return search(config, parameters(config.model), cluster, world, Calibration(), price)


def test_the_winner_fits_and_keeps_the_tokens_of_a_step() -> None:
    winner = estimated(CONFIG).winner.candidate
    assert winner.memory_bytes <= usable_bytes(A100)
    assert winner.config.step_tokens(64) == CONFIG.step_tokens(64)


def test_less_memory_shards_more_and_says_by_how_much_others_fall() -> None:
    small = A100.model_copy(update={"memory_gb": 40})
    choice = estimated(CONFIG, small)
    assert choice.winner.candidate.memory_bytes <= usable_bytes(small)
    assert choice.num_fitting < choice.num_tried
    assert "more than there is" in choice.fallen["replicated (DDP)"]


def test_slow_links_between_nodes_keep_sharded_parameters_inside_them() -> None:
    slow = A100.model_copy(update={"far": A100.far.model_copy(update={"gb_per_s": 5.0})})
    choice = estimated(CONFIG, slow)
    assert choice.winner.candidate.sizes.param <= 8
    assert "on far links" in choice.fallen["all over all (ZeRO-3)"]


def test_the_pessimistic_end_of_the_band_decides() -> None:
    def price(trial: Config) -> Band:
        risky = trial.zero.optim == first.sizes.optim and trial.zero.param == first.sizes.param
        return Band(1.0, 0.9, 2.0) if risky else Band(1.1, 1.0, 1.2)

    first = estimated(CONFIG).winner.candidate
    choice = search(CONFIG, parameters(CONFIG.model), A100, 64, Calibration(), price)
    assert choice.winner.candidate.sizes != first.sizes


def test_of_plans_that_are_alike_the_one_with_the_smallest_groups_wins() -> None:
    choice = search(CONFIG, parameters(CONFIG.model), A100, 64, Calibration(), lambda _: Band(1.0, 0.9, 1.1))
    sizes = choice.winner.candidate.sizes
    assert choice.runner_up is not None
    other = choice.runner_up.candidate.sizes
    assert (sizes.param, sizes.grad, sizes.optim) < (other.param, other.grad, other.optim)


def test_a_model_too_large_for_every_plan_is_refused_with_the_least_that_it_needs() -> None:
    with pytest.raises(MemoryNeededError, match="no plan fits 8 ranks of 4 GB: the least, 8/8/8"):
        estimated(CONFIG, A100.model_copy(update={"memory_gb": 4}), world=8)


def test_every_candidate_is_legal_on_16384_ranks() -> None:
    world = 16384
    for each in candidates(CONFIG, parameters(CONFIG.model), A100, world, Calibration()):
        sizes = (each.sizes.param, each.sizes.grad, each.sizes.optim, world)
        assert all(large % small == 0 for small, large in pairwise(sizes))
        assert replace(each.estimate, gather=0, reduce=0, refresh=0).total <= each.estimate.total
