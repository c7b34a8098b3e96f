"""Saved by one plan, loaded by another: the same bits, for every pair of worlds. Real ranks over gloo."""

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
import torch

from internevo_engine.checkpoint.load import load_newest
from internevo_engine.checkpoint.local import LocalStorage
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.view import ShardedView, view_of
from internevo_engine.engine import Engine
from internevo_engine.errors import CheckpointError, UsageError
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import TORCH_DTYPES
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import Plan, make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.optimizers import OPTIMIZERS
from internevo_engine.runtime.sharded_state import ShardedState
from tests.ranks import run_ranks
from tests.test_engine import MICRO_BATCHES, Sizes, config, documents, engine_of, model_of, pack

PLANS: dict[int, list[tuple[Sizes, float]]] = {
    1: [((1, 1, 1), 0.05), ((1, 1, 1), 5.0)],
    2: [((1, 1, 2), 0.05), ((2, 2, 2), 0.02)],
    4: [((1, 2, 4), 0.03), ((2, 2, 2), 0.05)],
}
"""Group sizes of P, G and OS, and bucket_mb; the first of each world saves, all load. The last has replicas."""


def values(key: str, numel: int) -> torch.Tensor:
    """Numbers that a key stands for, the same on every rank."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(crc32(key.encode())))


def expected(view: ShardedView, source: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(live tensor, what world `source` saves there), of all that this rank owns."""
    for stretch in view.stretches:
        param = view.params[stretch.param]
        for state, tensor in zip(view.states, stretch.tensors, strict=True):
            whole = values(f"{source} {param.name} {state}", param.numel)
            yield tensor, whole[stretch.offset : stretch.offset + stretch.length]


def sharded(place: Place, sizes: Sizes, bucket_mb: float) -> tuple[torch.nn.Module, Communicator, ShardedState, Plan]:
    """A model in bf16, sharded; no step is captured."""
    cfg = config(sizes=sizes, bucket_mb=bucket_mb)
    plan = make_plan(cfg, parameters(cfg.model), Topology(place.world, place.world, "cpu"))
    communicator = Communicator(place, torch.device("cpu"), plan.levels)
    model = model_of(cfg).bfloat16()
    return model, communicator, ShardedState(list(model.parameters()), plan, communicator, OPTIMIZERS["adamw"]), plan


def save_own(state: ShardedState, plan: Plan, communicator: Communicator, folder: Path) -> None:
    """The state that this world stands for."""
    view = view_of(state, plan, communicator.rank)
    for tensor, wanted in expected(view, communicator.world):
        tensor.copy_(wanted)
    Saver(LocalStorage(folder / f"from{communicator.world}"), view, communicator).save(1, {})


def load_from(place: Place, folder: Path, sources: list[int]) -> None:
    """By every plan of this world; the first one saves, if it is to be loaded here too."""
    for sizes, bucket_mb in PLANS[place.world]:
        model, communicator, state, plan = sharded(place, sizes, bucket_mb)
        if place.world in sources and (sizes, bucket_mb) == PLANS[place.world][0]:
            save_own(state, plan, communicator, folder)
        for source in sources:
            view = view_of(state, plan, place.rank)
            assert load_newest(LocalStorage(folder / f"from{source}"), view, communicator)
            assert all(torch.equal(found, wanted) for found, wanted in expected(view, source)), (source, sizes)
            state.adopt_masters()
            with state.whole_parameters():
                for name, parameter in model.named_parameters():
                    master = values(f"{source} {name} master", parameter.numel())
                    assert torch.equal(parameter.flatten(), master.bfloat16()), (source, sizes, name)


def test_every_world_and_plan_loads_the_checkpoints_of_every_other_bit_for_bit(tmp_path: Path):
    load_from(ALONE, tmp_path, [1])
    run_ranks(load_from, 2, tmp_path / "two", tmp_path, [1, 2])
    run_ranks(load_from, 4, tmp_path / "four", tmp_path, [1, 2, 4])
    run_ranks(load_from, 2, tmp_path / "two again", tmp_path, [4])
    load_from(ALONE, tmp_path, [2, 4])


def train(engine: Engine, steps: int) -> list[float]:
    first = engine.num_steps_done
    batches = [[pack(list(documents(step, n))) for n in range(MICRO_BATCHES)] for step in range(first, first + steps)]
    return [engine.step(micro_batches).loss for micro_batches in batches]


def engine_in(dtype: str, mode: str) -> Engine:
    cfg = config(mode=mode, grad_accum=MICRO_BATCHES)
    model = model_of(cfg).to(TORCH_DTYPES[dtype])
    return Engine(model, token_loss, **dict(cfg.step))


@pytest.mark.parametrize(("mode", "dtype"), [("graph", "fp32"), ("graph", "bf16"), ("hooks", "fp32")])
def test_an_engine_that_was_loaded_goes_on_with_the_same_bits(tmp_path: Path, mode: str, dtype: str):
    straight, resumed = (engine_in(dtype, mode) for _ in range(2))
    train(straight, 3)
    straight.save(str(tmp_path))
    resumed.load(str(tmp_path))
    assert train(resumed, 3) == train(straight, 3)
    assert resumed.state.checksums() == straight.state.checksums()


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path):
    engine_of(ALONE, config()).save(str(tmp_path))
    wide = config()
    wide = wide.model_copy(update={"model": wide.model.model_copy(update={"ffn": 64})})
    with pytest.raises(
        CheckpointError, match=r"of another model: layers.* is \(\d+, 32\) in it and \(128, 32\) in the"
    ):
        engine_of(ALONE, wide).load(str(tmp_path))


def test_loading_from_where_nothing_is_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        engine_of(ALONE, config()).load(str(tmp_path / "nowhere"))


def test_a_step_that_is_not_finished_is_not_saved(tmp_path: Path):
    engine = engine_in("fp32", "hooks")
    engine.forward_backward(pack(list(documents(0, 0))))
    with pytest.raises(UsageError, match=r"save\(\) after 1 of grad_accum=4 micro-batches"):
        engine.save(str(tmp_path))
