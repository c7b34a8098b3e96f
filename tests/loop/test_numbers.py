"""Bad steps update nothing, their batches are left out and written down, and a run that goes on leaves out the same."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from internevo_engine.config.load import load_config
from internevo_engine.config.schema import RunConfig
from internevo_engine.data.packing import MicroBatch, PackedCorpus
from internevo_engine.engine import Engine
from internevo_engine.errors import NumbersError
from internevo_engine.loop import begin
from internevo_engine.loop import train as loop
from internevo_engine.loop.fingerprint import first_difference
from internevo_engine.loop.numbers import Numbers
from internevo_engine.loop.run_folder import read_jsonl
from internevo_engine.models.loss import token_loss
from internevo_engine.run import main
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.limits import Limits
from tests.conftest import Tiny

RUN = RunConfig(spike_sigma=6.0, spike_window=4, max_bad_steps=2)


def left_out(numbers: Numbers, bad_batch: int, step: int) -> Numbers:
    return numbers.without(bad_batch, step, per_batch=2, why="")


def test_batches_that_are_left_out_are_jumped_over_and_no_other() -> None:
    numbers = left_out(left_out(left_out(Numbers(), 2, 2), 3, 2), 8, 4)
    assert [numbers.batch(step) for step in range(7)] == [0, 1, 4, 5, 9, 10, 11]
    assert numbers.num_skipped == 5
    assert numbers.skips[2].micro_batches == (16, 18)


def test_a_spike_is_far_above_a_full_window_of_good_steps() -> None:
    numbers = Numbers()
    for loss in (9.0, 1.0, 3.0, 1.0):
        assert numbers.limits(RUN) == Limits()
        numbers = numbers.after(loss, 2 * loss, RUN)
    numbers = numbers.after(3.0, 6.0, RUN)
    assert numbers.losses == (1.0, 3.0, 1.0, 3.0)
    assert numbers.limits(RUN) == Limits(2 + 6 * 1.0, 4 + 6 * 2.0)
    assert numbers.limits(RUN.model_copy(update={"spike_sigma": None})) == Limits()


def test_numbers_survive_json_to_the_last_bit() -> None:
    numbers = left_out(Numbers().after(1 / 3, math.pi * 1e-7, RUN), 0, 0)
    assert Numbers.model_validate_json(json.dumps(numbers.model_dump(mode="json"))) == numbers


NAN = float("nan")
MARK = 7
"""A position that no piece begins with."""


def poison(patch: pytest.MonkeyPatch, batches: set[int], factor: float) -> None:
    """Multiply the loss of the last micro-batch of these batches: what a broken document does to a step."""
    real = PackedCorpus.micro_batch

    def micro_batch(corpus: PackedCorpus, step: int, number: int, per_step: int) -> MicroBatch:
        batch = real(corpus, step, number, per_step)
        if step in batches and number == per_step - 1:
            batch.positions[0] = MARK
        return batch

    def loss(model: torch.nn.Module, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, count = token_loss(model, batch)
        return loss_sum * torch.where(batch.positions[0] == MARK, factor, 1.0), count

    patch.setattr(PackedCorpus, "micro_batch", micro_batch)
    patch.setattr(begin, "token_loss", loss)


@pytest.fixture
def poisoned() -> Iterator[Callable[..., None]]:
    with pytest.MonkeyPatch.context() as patch:
        yield lambda *batches, factor=NAN: poison(patch, set(batches), factor)


def skipped(run: Path) -> list[tuple[int, int, int]]:
    return [(r["step"], r["first"], r["count"]) for r in read_jsonl(run / "skipped.jsonl")]


def steps(run: Path) -> list[int]:
    return [record["step"] for record in read_jsonl(run / "metrics.jsonl")]


@pytest.mark.parametrize("mode", ["graph", "hooks"])
def test_a_batch_that_gives_nan_is_left_out_counted_and_written_down(tiny: Tiny, capsys, poisoned, mode: str) -> None:
    poisoned(2)
    assert main([tiny.config, f"graph.mode={mode}"]) == 0
    assert skipped(tiny.run) == [(2, 2, 1)]
    assert "step 2: batch 2 is left out: loss is nan, gradient norm nan" in capsys.readouterr().out
    records = read_jsonl(tiny.run / "metrics.jsonl")
    assert [record["skipped"] for record in records] == [0, 0, 1, 1, 1, 1]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(record["loss"]) for record in records)


def test_a_run_with_a_bad_batch_has_the_bits_of_one_that_never_had_it(tiny: Tiny, poisoned, monkeypatch) -> None:
    clean = tiny.folder / "runs/clean"
    with monkeypatch.context() as patch:
        real = PackedCorpus.micro_batch
        patch.setattr(PackedCorpus, "micro_batch", lambda c, step, n, per: real(c, step + (step >= 2), n, per))
        assert main([tiny.config, f"run.dir={clean}"]) == 0
    poisoned(2)
    assert main([tiny.config]) == 0
    assert first_difference(clean, tiny.run) == "6 steps are equal, bit for bit"


def test_too_many_in_a_row_end_with_9_and_the_same_command_ends_alike(tiny: Tiny, capsys, poisoned) -> None:
    poisoned(3, 4)
    for _ in range(2):
        assert main([tiny.config, "run.max_bad_steps=2", "checkpoint.every=1"]) == 9
        error = capsys.readouterr().err
        assert "after step 3: loss is nan, gradient norm nan; 2 bad steps without a good one in between" in error
        assert len(error.splitlines()) == 1
        (tiny.run / "skipped.jsonl").write_text("")
    assert steps(tiny.run) == [1, 2, 3]
    assert main([tiny.config, "run.max_bad_steps=3", "checkpoint.every=1"]) == 0
    assert skipped(tiny.run) == [(3, 3, 1), (3, 4, 1)]


def test_rewind_goes_back_to_the_checkpoint_and_leaves_out_all_batches_since(tiny: Tiny, capsys, poisoned) -> None:
    poisoned(1, 6)
    assert main([tiny.config, "run.bad_step=rewind", "checkpoint.every=2"]) == 0
    output = capsys.readouterr().out
    assert "going on from the checkpoint of step 0" in output
    assert "step 0: batches 0 to 1 are left out: loss is nan" in output
    assert skipped(tiny.run) == [(0, 0, 2), (4, 6, 1)]
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_run_that_is_killed_later_leaves_out_the_same_batches(tiny: Tiny, poisoned, policy: str) -> None:
    poisoned(3)
    options = [f"run.bad_step={policy}", "checkpoint.every=2", "run.steps=8"]
    straight = tiny.folder / "runs/straight"
    assert main([tiny.config, *options, f"run.dir={straight}"]) == 0
    for step in (3, 5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", dies_at(step, Engine.step))
            with pytest.raises(Killed):
                main([tiny.config, *options])
    assert main([tiny.config, *options]) == 0
    assert first_difference(straight, tiny.run) == "8 steps are equal, bit for bit"
    assert skipped(tiny.run) == skipped(straight)


class Killed(BaseException):
    """The process ended."""


def dies_at(step: int, real: Callable[..., object]) -> Callable[..., object]:
    def run(engine: Engine, *arguments: object, **keywords: object) -> object:
        if engine.num_steps_done == step:
            raise Killed
        return real(engine, *arguments, **keywords)

    return run


def test_a_spike_is_left_out_and_does_not_enter_the_window(tiny: Tiny, capsys, poisoned) -> None:
    poisoned(4, 5, factor=50.0)
    assert main([tiny.config, "run.spike_sigma=6", "run.spike_window=4", "checkpoint.every=1"]) == 0
    output = capsys.readouterr().out
    assert "step 4: batch 4 is left out: loss " in output
    assert "is above" in output
    assert skipped(tiny.run) == [(4, 4, 1), (4, 5, 1)]
    manifest = json.loads((tiny.run / "checkpoints/step-6/manifest.json").read_text())["manifest"]
    losses = [record["loss"] for record in read_jsonl(tiny.run / "metrics.jsonl")]
    assert manifest["extra"]["numbers"]["losses"] == losses[-4:]


def poisoned_rank(rank: int, config: str, store: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, {2}, NAN)
        options = ["run.bad_step=rewind", "checkpoint.every=2", "zero.optim=2"]
        loop.train(load_config(config, options), Place(rank, 2, rank, 2, f"file://{store}"))


def test_one_ranks_bad_numbers_are_judged_alike_by_all_ranks(tiny: Tiny, tmp_path: Path) -> None:
    """The mark is in the last rank's micro-batch; a rank that judged for itself would part from the other."""
    torch.multiprocessing.spawn(poisoned_rank, (tiny.config, tmp_path / "store"), nprocs=2)
    assert skipped(tiny.run) == [(2, 2, 1)]
    assert steps(tiny.run) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("mode", "limits"), [("graph", Limits(loss=1.0)), ("hooks", Limits(grad_norm=1e-3))])
def test_an_engine_above_its_limits_updates_nothing_and_goes_on(mode: str, limits: Limits) -> None:
    def loss(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return (model(x) - 5).square().mean()

    engine = Engine(torch.nn.Linear(3, 1), loss, optim={"lr": 1e-2}, graph={"mode": mode, "compile": "eager"})
    before = engine.state_dict()
    with pytest.raises(NumbersError, match=r"is above .*the update was not applied"):
        engine.step([torch.ones(2, 3)], limits=limits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.state_dict().items())
    engine.step([torch.ones(2, 3)])
    assert not torch.equal(engine.state_dict()["weight"], before["weight"])
    engine.close()
