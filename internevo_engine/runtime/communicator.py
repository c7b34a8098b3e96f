"""runtime: the only file through which bytes leave a rank, besides the gradient buckets in csrc/runtime.

Everything goes through torch.distributed, so its watchdog, flight recorder and gloo stay usable.
"""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from internevo_engine.errors import LostRankError
from internevo_engine.plan.topology import groups
from internevo_engine.runtime.launch import ALONE, Place

JOIN_TIMEOUT = timedelta(minutes=10)
"""For all ranks to arrive, and for a collective to end."""


class Communicator:
    """The ranks of a job: the world, and this rank's group of optimizer-state owners."""

    def __init__(self, place: Place, device: torch.device, optim_group: int) -> None:
        self.rank, self.world, self.device = place.rank, place.world, device
        self.optim_rank, self.optim_group_size = place.rank % optim_group, optim_group
        self._optim_group: dist.ProcessGroup | None = None
        if self.world > 1 and optim_group > 1:
            ranks = [list(group) for group in groups(self.world, optim_group)]
            group, _ = dist.new_subgroups_by_enumeration(ranks)
            assert isinstance(group, dist.ProcessGroup), "every rank is in one group"
            self._optim_group = group

    @property
    def world_group_name(self) -> str:
        """Name under which C++ finds the world's process group; '' in a world of one."""
        return dist.group.WORLD.group_name if self.world > 1 and dist.group.WORLD else ""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            with self.peers_named():
                dist.all_reduce(values)
        return values

    def gather_shards(self, flat: torch.Tensor) -> None:
        """Fill `flat`, of which every rank of the optimizer-state group holds its own slice, in place."""
        if self._optim_group is not None:
            with self.peers_named():
                dist.all_gather_into_tensor(flat, self.own_slice(flat).clone(), group=self._optim_group)

    def own_slice(self, flat: torch.Tensor) -> torch.Tensor:
        """This rank's slice of a flat buffer that is sharded over the optimizer-state group; a view."""
        size = flat.numel() // self.optim_group_size
        return flat.narrow(0, self.optim_rank * size, size)

    def close(self) -> None:
        """Drop the groups: one that is alive when Python ends may abort, as its thread frees Python objects."""
        self._optim_group = None

    @contextmanager
    def rank_0_first(self, name: str) -> Iterator[None]:
        """Run the block on rank 0 before the others, however long it takes there (tokenizing a corpus)."""
        if self.world == 1:
            yield
            return
        store = PrefixStore("internevo", _get_default_store())
        if self.rank == 0:
            yield
            store.set(name, "done")
            return
        with self.peers_named():
            while not store.check([name]):  # polled, not awaited in C++, so that Ctrl-C is heard
                time.sleep(0.2)
        yield

    @contextmanager
    def peers_named(self) -> Iterator[None]:
        """Turn the backend's failure into a message that says what it means."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            raise LostRankError(
                f"rank {self.rank}: a collective failed: another rank ended or the network broke "
                f"(see that rank's message); the backend says: {str(error).splitlines()[0]}"
            ) from error


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
        dist.init_process_group(
            backend, init_method=place.rendezvous, rank=place.rank, world_size=place.world, timeout=JOIN_TIMEOUT
        )
    except (RuntimeError, dist.DistError) as error:
        raise LostRankError(
            f"rank {place.rank} on {socket.gethostname()}: not all {place.world} ranks met at "
            f"{place.rendezvous} within {JOIN_TIMEOUT}; start the same command on every host; "
            f"torch says: {str(error).splitlines()[0]}"
        ) from error
    yield
    dist.destroy_process_group()  # not after an error: this rank's message must come before the others lose it
