"""A training state small enough to be saved a hundred times a second: no engine, two parameters."""

from pathlib import Path

import torch

from internevo_engine.checkpoint.load import load_newest
from internevo_engine.checkpoint.manifest import Manifest, PlanEntry
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.checkpoint.view import ShardedView, Stretch
from internevo_engine.plan.params import Param
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import ALONE

PARAMS = (Param("embedding.weight", (20, 4), 0), Param("norm.weight", (24,), 1))
STATES = ("master", "exp_avg", "exp_avg_sq")


def small_view(seed: int, rank: int = 0, world: int = 1) -> ShardedView:
    """Rank `rank`'s part of the state that a seed stands for."""
    generator = torch.Generator().manual_seed(seed)
    stretches = []
    for index, param in enumerate(PARAMS):
        length = param.numel // world
        whole = [torch.randn(param.numel, generator=generator) for _ in STATES]
        own = tuple(tensor[rank * length : (rank + 1) * length].clone() for tensor in whole)
        stretches.append(Stretch(index, rank * length, own))
    plan = PlanEntry(world=world, param=1, grad=1, optim=world, dtype="fp32")
    return ShardedView(PARAMS, STATES, tuple(stretches), is_writer=True, plan=plan)


def alone() -> Communicator:
    return Communicator(ALONE, torch.device("cpu"), ())


def saver_of(storage: Storage, seed: int, **options: object) -> Saver:
    """Saves the state of a seed."""
    return Saver(storage, small_view(seed), alone(), run_id="run", **{"keep": 3, **options})


def publish(storage: Storage, step: int) -> None:
    """Step n's state is that of seed n."""
    saver_of(storage, step).save(step, {"step": step})


def load(storage: Storage) -> tuple[Manifest, ShardedView]:
    view = small_view(-1)
    return load_newest(storage, view, alone()), view


def equal(left: ShardedView, right: ShardedView) -> bool:
    """Bit for bit."""
    pairs = zip(left.stretches, right.stretches, strict=True)
    return all(torch.equal(a, b) for one, two in pairs for a, b in zip(one.tensors, two.tensors, strict=True))


def is_sound(storage: Storage, among: tuple[int, ...]) -> bool:
    """What loads is one of these steps, and nothing else of it."""
    manifest, view = load(storage)
    assert manifest.step in among, f"step {manifest.step} was loaded"
    assert manifest.extra == {"step": manifest.step}
    return equal(view, small_view(manifest.step))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
