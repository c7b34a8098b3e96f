"""internevo_engine as a peer. The only place in bench/ that makes an Engine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from bench.peers.peer import Peer, Rank
from internevo_engine.data.packing import MicroBatch
from internevo_engine.engine import Engine
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.topology import Topology
from internevo_engine.program import Program
from internevo_engine.runtime.launch import ALONE
from internevo_engine.schedule.report import bytes_sent
from internevo_engine.schedule.show import program_of


def build_engine(rank: Rank) -> Peer:
    settings, place = rank.settings, rank.place
    topology = Topology(place.world, place.local_world, rank.device.type)
    model = settings.make_model(rank.device)
    example = settings.micro_batches(0, place.rank, place.world)[0].to(rank.device)
    engine = Engine(model, token_loss, **dict(settings.config.step), example=example, place=place)

    def step(micro_batches: Sequence[MicroBatch]) -> torch.Tensor:
        return torch.tensor(engine.step(micro_batches).loss)

    return Peer(step, engine.close, lambda: link_bytes(program_of(settings.config, topology)))


def build_engine_alone(rank: Rank) -> Peer:
    """Every rank alone, all at once: what the engine's computing costs without communication."""
    return build_engine(replace(rank, place=ALONE, settings=replace(rank.settings, zero=(1, 1, 1))))


def link_bytes(program: Program) -> Mapping[str, int]:
    """Bytes that each rank sends in a step, by kind of link, but for the few of the norm."""
    links = {level.name: level.link for level in program.levels}
    sent: Counter[str] = Counter()
    for level, num_bytes in bytes_sent(program).items():
        if level in links:
            sent[links[level]] += num_bytes
    return dict(sent)
