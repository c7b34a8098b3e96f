"""runtime: who am I among the ranks? Three launchers, one answer; and the third of them, which starts ranks itself.

A rank learns its place from torchrun's variables, from Slurm's, or from `--join` when `launch.nproc` started it.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

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
    attempt: int = 0
    """How often these ranks were started before; each attempt meets under keys of its own."""
    board: int = -1
    """Open file of the board on which the ranks of this host watch each other; -1: none yet. See watch.py."""
    words: int = -1
    """Open file for what this rank's parent should know of its end; -1: no parent of ours."""
    job: str = ""
    """Equal in all attempts of one command; '' where a launcher starts the ranks."""

    def as_join(self) -> str:
        """The text of `--join`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_join(cls, text: str) -> "Place":
        """What `as_join` wrote."""
        return cls(**json.loads(text))


ALONE = Place(0, 1, 0, 1, "")


def _torchrun(env: Mapping[str, str]) -> Place:
    rank, world = _integer(env, "RANK"), _integer(env, "WORLD_SIZE")
    local_world = int(env.get("LOCAL_WORLD_SIZE", world))
    local_rank, attempt = int(env.get("LOCAL_RANK", rank % local_world)), int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
    return Place(rank, world, local_rank, local_world, "env://", attempt)


def _slurm(env: Mapping[str, str]) -> Place:
    rank, world = _integer(env, "SLURM_PROCID"), _integer(env, "SLURM_NTASKS")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "localhost")  # a step may use fewer hosts
    hosts = expand_hosts(nodes)
    port = env.get("MASTER_PORT") or SLURM_PORTS[int(env.get("SLURM_JOB_ID", 0)) % len(SLURM_PORTS)]
    if world % len(hosts):
        raise ConfigError(
            f"SLURM_NTASKS={world} ranks on {len(hosts)} hosts; every host needs the same number: use --ntasks-per-node"
        )
    local_world = world // len(hosts)
    local_rank, attempt = int(env.get("SLURM_LOCALID", rank % local_world)), int(env.get("SLURM_RESTART_COUNT", 0))
    return Place(rank, world, local_rank, local_world, f"tcp://{env.get('MASTER_ADDR', hosts[0])}:{port}", attempt)


@dataclass(frozen=True)
class Launcher:
    """A row: whether this launcher started the process, and how a place is read from its environment."""

    started: Callable[[Mapping[str, str]], bool]
    read: Callable[[Mapping[str, str]], Place]


def _started_by_srun(env: Mapping[str, str]) -> bool:
    """A batch script of one task has a rank too, but nobody started it as one: there launch.nproc decides."""
    return "SLURM_PROCID" in env and (env.get("SLURM_NTASKS") != "1" or "SLURM_STEP_ID" in env)


LAUNCHERS = (Launcher(lambda env: "RANK" in env, _torchrun), Launcher(_started_by_srun, _slurm))


def find_place(join: str | None, env: Mapping[str, str]) -> Place | None:
    """The place that a launcher gave this process, or None: nobody started ranks yet.

    Args:
        join: the text of `--join`, as `Place.as_join` writes it.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    if join is not None:
        return Place.from_join(join)
    return next((launcher.read(env) for launcher in LAUNCHERS if launcher.started(env)), None)


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
