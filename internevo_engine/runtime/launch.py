"""runtime: who am I among the ranks? Three launchers, one answer; and the third of them, which starts ranks itself.

A rank learns its place from torchrun's variables, from Slurm's, or from `--join` when `launch.nproc` started it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from internevo_engine.errors import ConfigError

SLURM_PORTS = range(20000, 60000)
"""The job id picks the port of the store, so that two jobs on one host don't meet."""


@dataclass(frozen=True)
class Place:
    """One rank's place in the job."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    rendezvous: str
    """init_method of torch.distributed: file://, tcp:// or env://."""


ALONE = Place(0, 1, 0, 1, "")


def _torchrun(env: Mapping[str, str]) -> Place:
    rank, world = _integer(env, "RANK"), _integer(env, "WORLD_SIZE")
    local_world = int(env.get("LOCAL_WORLD_SIZE", world))
    return Place(rank, world, int(env.get("LOCAL_RANK", rank % local_world)), local_world, "env://")


def _slurm(env: Mapping[str, str]) -> Place:
    rank, world = _integer(env, "SLURM_PROCID"), _integer(env, "SLURM_NTASKS")
    hosts = expand_hosts(env["SLURM_JOB_NODELIST"]) if "SLURM_JOB_NODELIST" in env else ["localhost"]
    port = env.get("MASTER_PORT") or SLURM_PORTS[int(env.get("SLURM_JOB_ID", 0)) % len(SLURM_PORTS)]
    if world % len(hosts):
        raise ConfigError(
            f"SLURM_NTASKS={world} ranks on {len(hosts)} hosts; every host needs the same number: use --ntasks-per-node"
        )
    local_world = world // len(hosts)
    local_rank = int(env.get("SLURM_LOCALID", rank % local_world))
    return Place(rank, world, local_rank, local_world, f"tcp://{env.get('MASTER_ADDR', hosts[0])}:{port}")


@dataclass(frozen=True)
class Launcher:
    """A row: the variable that gives the launcher away, and how a place is read from its environment."""

    sign: str
    read: Callable[[Mapping[str, str]], Place]


LAUNCHERS = (Launcher("RANK", _torchrun), Launcher("SLURM_PROCID", _slurm))


def find_place(join: str | None, env: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process, or None: nobody started ranks yet.

    Args:
        join: the text of `--join`, as `start_ranks` writes it: rank/world@rendezvous.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    if join is not None:
        numbers, _, rendezvous = join.partition("@")
        rank, world = map(int, numbers.split("/"))
        return Place(rank, world, rank, world, rendezvous)
    return next((launcher.read(env) for launcher in LAUNCHERS if launcher.sign in env), None)


def expand_hosts(nodelist: str) -> list[str]:
    """Slurm's short form of host names: 'gpu[01-03,7],login' -> gpu01 gpu02 gpu03 gpu7 login."""
    hosts: list[str] = []
    for prefix, ranges, suffix in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)", nodelist):
        for part in ranges.split(",") if ranges else [""]:
            first, _, last = part.partition("-")
            numbers = [part] if not last else [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
            hosts += [f"{prefix}{number}{suffix}" for number in numbers]
    return hosts


def _integer(env: Mapping[str, str], name: str) -> int:
    if not env.get(name, "").isdigit():
        raise ConfigError(
            f"the launcher set {name}={env.get(name)!r}, but a number is needed; start with srun or torchrun"
        )
    return int(env[name])
