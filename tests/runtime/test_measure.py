"""Measured costs: rank 0's table serves all, a second start reads it, and what it chooses changes no bit."""

from dataclasses import replace
from pathlib import Path

import torch

from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Level
from internevo_engine.runtime import measure
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.transfers import ANY_BYTES, cut_as_measured, routes
from internevo_engine.schedule.costs import MODELLED, CostTable, TransferTime
from internevo_engine.schedule.step_program import modelled_costs
from tests.ranks import run_ranks
from tests.test_engine import Outcome, Sizes, config, engine_loop

LEVEL = Level("OS", 0, 2, 1, "near")


def costs_of(place: Place, sizes: Sizes) -> tuple[CostTable, list[str]]:
    cfg = config(sizes=sizes, reduction="ordered")
    plan = make_plan(cfg, parameters(cfg.model), Topology(place.world, max(place.world // 2, 1), "cpu"))
    communicator = Communicator(place, torch.device("cpu"), plan.levels)
    heard: list[str] = []
    costs = measure.machine_costs(plan, communicator, heard.append)
    communicator.close()
    return costs, heard


def costs_twice(place: Place, sizes: Sizes) -> list[tuple[CostTable, list[str]]]:
    return [costs_of(place, sizes), costs_of(place, sizes)]


def test_rank_0s_table_serves_all_and_the_next_start(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    results = run_ranks(costs_twice, 4, tmp_path, (1, 2, 2))
    (table, heard), (again, heard_again) = results[0]
    assert all(costs == table for rank in results for costs, _ in rank)
    assert table == again
    assert "measured" in heard[0]
    assert heard_again == []
    assert len(list((tmp_path / "cache" / "internevo_engine" / "costs").glob("*.json"))) == 1
    measured = {(row.transfer, row.link, row.size, row.bytes, row.pieces) for row in table.transfers}
    assert len(measured) == len(table.transfers)
    assert {key[:3] for key in measured} == {
        ("all_gather", "near", 2),
        ("reduce_scatter", "near", 2),
        ("all_gather", "far", 2),
        ("all_reduce", "far", 2),
    }
    assert all(row.ns > 0 for row in table.transfers)
    modelled = MODELLED["cpu"]
    assert (table.flops_per_us, table.memory) != (modelled.flops_per_us, modelled.memory)


def test_a_folder_that_can_not_be_written_is_no_reason_to_stop(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (table, heard), _ = run_ranks(costs_of, 2, tmp_path, (1, 1, 2))
    assert table.transfers
    assert "can't be kept" in heard[0]


def test_one_rank_measures_nothing() -> None:
    cfg = config()
    plan = make_plan(cfg, parameters(cfg.model), Topology(1, 1, "cpu"))
    communicator = Communicator(ALONE, torch.device("cpu"), plan.levels)
    assert measure.machine_costs(plan, communicator, print) == modelled_costs(plan)


def best(pieces: dict[int, int]) -> CostTable:
    rows = [TransferTime("reduce_scatter", "near", 2, size, n, 100) for size, n in pieces.items()]
    return replace(MODELLED["cpu"], transfers=tuple(rows))


def test_pieces_are_those_of_the_nearest_measured_size_and_the_algorithm_stays() -> None:
    table = routes("gloo", "fast", torch.float32)
    found = cut_as_measured(table, best({100: 1, 10_000: 16}), LEVEL)
    rows = [row for row in found if row.transfer == "reduce_scatter"]
    assert [(row.up_to_bytes, row.pieces) for row in rows] == [(1000, 1), (ANY_BYTES, 16)]
    assert {row.algorithm for row in rows} == {"ordered"}
    assert [row for row in found if row.transfer != "reduce_scatter"] == [
        row for row in table if row.transfer != "reduce_scatter"
    ]


def train_with_each(place: Place, pieces: list[int]) -> list[Outcome]:
    return [train_with(place, number) for number in pieces]


def train_with(place: Place, pieces: int) -> Outcome:
    """As if `pieces` had been the fastest everywhere."""
    kinds = [(transfer, "near", 2) for transfer in ("all_gather", "reduce_scatter", "all_reduce")]
    rows = tuple(TransferTime(*kind, size, pieces, 100) for kind in kinds for size in (1000, 10_000))  # pyright: ignore
    found = replace(MODELLED["cpu"], transfers=rows)
    measure.measure = lambda plan, communicator: found
    measure.stored_costs.read = lambda kind: None
    return engine_loop(place, config(sizes=(1, 1, 2), grad_accum=2, reduction="ordered"), steps=5)


def test_no_number_of_pieces_changes_a_bit(tmp_path: Path) -> None:
    whole, cut = run_ranks(train_with_each, 2, tmp_path, [1, 16])[0]
    assert whole.losses == cut.losses
    assert whole.norms == cut.norms
    assert all(torch.equal(cut.weights[name], weight) for name, weight in whole.weights.items())
