"""runtime: the process groups of a job, and the few exchanges outside a Program.

Everything goes through torch.distributed, so its watchdog, flight recorder and gloo stay usable.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.distributed.rendezvous import rendezvous

from internevo_engine.errors import ConfigError, LostRankError
from internevo_engine.plan.levels import cut
from internevo_engine.program import Lane, Level
from internevo_engine.runtime.launch import ALONE, Place, find_place

JOIN_TIMEOUT = timedelta(minutes=10)
"""For all ranks to arrive, and for a collective to end."""


class Communicator:
    """The ranks of a job: the world, and this rank's group of every level.

    A level has two groups, one for the gather lane and one for its link's lane, so that an all-gather and a
    reduce-scatter over the same ranks don't wait for each other.
    """

    def __init__(self, place: Place, device: torch.device, levels: Sequence[Level]) -> None:
        self.rank, self.world, self.device, self.levels = place.rank, place.world, device, tuple(levels)
        self.board = place.board
        lanes: list[tuple[Lane, Level]] = [(lane, level) for level in levels for lane in _lanes_of(level)]
        self._store = _own_store(place) if self.world > 1 else dist.HashStore()  # pyright: ignore[reportPrivateImportUsage] - documented
        self._num_agreed = 0
        self._groups: dict[tuple[Lane, str], dist.ProcessGroup] = {
            (lane, level.name): _own_group(level.groups(self.world)) for lane, level in lanes
        }

    @property
    def group_names(self) -> Mapping[tuple[Lane, str], str]:
        """Names under which C++ finds the process groups, by lane and level; 'all' is the world."""
        names = {key: str(group.group_name) for key, group in self._groups.items()}
        if self.world > 1 and dist.group.WORLD is not None:
            names["optimizer", "all"] = dist.group.WORLD.group_name
        return names

    @property
    def backend(self) -> str:
        """Name of the world's torch.distributed backend for this device; '' in a world of one.

        Raises:
            ConfigError: the process group has none.
        """
        if self.world == 1:
            return ""
        by_device = dict(part.split(":") for part in dist.get_backend_config().split(","))
        if self.device.type not in by_device:
            raise ConfigError(
                f"the model is on {self.device.type}, but the process group has {dist.get_backend_config()}; "
                "move the model, or name the backend in init_process_group (gloo for cpu, nccl for cuda)"
            )
        return by_device[self.device.type]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            with self.peers_named():
                dist.all_reduce(values)
        return values

    @torch.no_grad()
    def broadcast(self, tensor: torch.Tensor) -> None:
        """Give every rank what rank 0 has, in place; as bytes, for gloo does not know every dtype."""
        if self.world > 1:
            whole = tensor.contiguous()
            with self.peers_named():
                dist.broadcast(whole.flatten().view(torch.uint8), src=0)
            tensor.copy_(whole)

    def all_gather(self, flat: torch.Tensor, level: Level) -> None:
        """Fill `flat`, of which each rank of the level's group holds the slice of its digit, in place."""
        group = self._groups["gather", level.name]
        own = flat.chunk(level.size)[level.digit(self.rank)]
        with self.peers_named():
            dist.all_gather_single(flat, own.clone(), group=group)

    def fill(self, flat: torch.Tensor, levels: Sequence[Level]) -> None:
        """Complete `flat`, of which this rank holds the slice cut along `levels`, in place."""
        for number in reversed(range(len(levels))):
            offset, length = cut(self.rank, levels[:number], flat.numel())
            self.all_gather(flat.narrow(0, offset, length), levels[number])

    def agree(self, name: str, value: str) -> list[str]:
        """What each rank says under `name`, in the order of ranks; every rank asks in the same order."""
        self._num_agreed += 1
        key = f"{name}/{self._num_agreed}"  # what was said the last time is still in the store
        with self.peers_named():
            self._store.set(f"{key}/{self.rank}", value)
            return [self._store.get(f"{key}/{rank}").decode() for rank in range(self.world)]

    def post(self, name: str, value: str) -> None:
        """Pin a note to the board that all ranks see; from any thread, without waiting for anyone."""
        with self.peers_named():
            self._store.set(name, value)

    def peek(self, name: str) -> str | None:
        """A note on the board, or None: not there yet."""
        with self.peers_named():
            return self._store.get(name).decode() if self._store.check([name]) else None

    def withdraw(self, name: str) -> None:
        """Take a note off the board."""
        with self.peers_named():
            self._store.delete_key(name)

    def close(self) -> None:
        """Drop the groups: one that is alive when Python ends may abort, as its thread frees Python objects."""
        self._groups = {}

    @contextmanager
    def rank_0_first(self, name: str) -> Iterator[None]:
        """Run the block on rank 0 before the others, however long it takes there (tokenizing a corpus)."""
        if self.rank == 0:
            yield
            self._store.set(name, "done")
            return
        with self.peers_named():
            while not self._store.check([name]):  # polled, not awaited in C++, so that Ctrl-C is heard
                time.sleep(0.2)
        yield

    @contextmanager
    def peers_named(self) -> Iterator[None]:
        """Turn the backend's failure into a message that says what it means."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise lost_rank(self.rank, error) from error


def _lanes_of(level: Level) -> tuple[Lane, Lane]:
    return "gather", level.link


def _own_store(place: Place) -> PrefixStore:
    """Keys of this communicator alone: every rank makes its communicators in the same order, and counts them."""
    store = PrefixStore("internevo", _get_default_store())
    return PrefixStore(f"communicator {store.add(f'communicators of {place.rank}', 1)}", store)


def _own_group(groups: Sequence[tuple[int, ...]]) -> dist.ProcessGroup:
    """The new process group that this rank is in; every rank makes all of them."""
    group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups])
    assert isinstance(group, dist.ProcessGroup), "every rank is in one group"
    return group


def lost_rank(rank: int, error: Exception) -> LostRankError:
    """What a backend's failure in a collective means for the rank that sees it."""
    return LostRankError(
        f"rank {rank}: a collective failed: another rank ended or the network broke (see that rank's message); "
        f"the backend says: {str(error).splitlines()[0]}"
    )


def default_place() -> Place:
    """Where this rank stands in the default process group; the world is one rank where there is none.

    Hosts are as the launcher says (torchrun, Slurm); else all ranks count as one host.
    """
    if not dist.is_initialized():
        return ALONE
    rank, world = dist.get_rank(), dist.get_world_size()
    launched = find_place(None, os.environ)
    local_world = launched.local_world if launched is not None and launched.world == world else world
    return Place(rank, world, rank % local_world, local_world, rendezvous="")


@contextmanager
def joined(place: Place, backend: str) -> Iterator[None]:
    """Be a member of the job's process group.

    Raises:
        LostRankError: not all ranks arrived in time.
    """
    if place == ALONE:
        yield
        return
    try:
        store, _, _ = next(rendezvous(place.rendezvous, place.rank, place.world, timeout=JOIN_TIMEOUT))
        own = PrefixStore(f"attempt {place.attempt}", store)  # an earlier one's keys may still be there
        dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.world, timeout=JOIN_TIMEOUT)
    except (RuntimeError, dist.DistError) as error:
        raise LostRankError(
            f"rank {place.rank} on {socket.gethostname()}: not all {place.world} ranks met at "
            f"{place.rendezvous} within {JOIN_TIMEOUT}; start the same command on every host; "
            f"torch says: {str(error).splitlines()[0]}"
        ) from error
    yield
    dist.destroy_process_group()  # not after an error: this rank's message must come before the others lose it
