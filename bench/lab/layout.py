"""An emulated cluster on paper: names, addresses, rates, and the commands that make it. Nothing is run here.

Each host is a network namespace whose `eth0` is one end of a veth pair; the other end is a port of a bridge, which
stands in a namespace of its own, the switch. So nothing appears among the machine's own interfaces, and whoever
deletes the namespaces has deleted the lab. `tc tbf` shapes both ends of a pair: `eth0` what the host sends, the port
what it receives. network.py runs the commands.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from internevo_engine.errors import ConfigError

Command = tuple[str, ...]

INTERFACE, BRIDGE = "eth0", "switch"
MASTER_PORT = 29500
"""Always free: the namespaces are new."""
MTU = 9000
"""Jumbo frames, as clusters have them: headers take less than 1 % of the rate."""
MIN_BURST_BYTES = 68 * 1024
"""More than one 64 KiB packet of the veth, which tbf would cut up; not much more, as it is free for short transfers."""
BURST_S, QUEUE_MS = 0.002, 50
"""What may pass at once, as a time at the rate; and how long a packet may wait before it is dropped."""
UNITS: Mapping[str, float] = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}


@dataclass(frozen=True)
class Lab:
    """Hosts with equal links, and the ranks on them."""

    name: str
    hosts: int
    ranks_per_host: int
    rate_bit_per_s: float | None
    """Of every host's link, in each direction; None: unshaped."""

    @property
    def world(self) -> int:
        return self.hosts * self.ranks_per_host

    @property
    def prefix(self) -> str:
        return namespace_prefix(self.name)

    @property
    def switch(self) -> str:
        """Namespace of the bridge."""
        return f"{self.prefix}switch"

    def namespace(self, host: int) -> str:
        return f"{self.prefix}host{host}"

    def address(self, host: int) -> str:
        return f"10.77.{(host + 1) // 256}.{(host + 1) % 256}"


def namespace_prefix(name: str) -> str:
    """What the namespaces of the lab `name` begin with, and no other's."""
    return f"ie-{name}-"


def make_lab(name: str, hosts: int, ranks_per_host: int, rate: str) -> Lab:
    """The lab that was asked for.

    Args:
        rate: of each link, such as 400mbit, or none.

    Raises:
        ConfigError: a name with other signs than letters and digits, no host, no rank, or a rate that can't be read.
    """
    if not name.isalnum():
        raise ConfigError(f"--lab {name!r}: letters and digits only")
    if not (1 <= hosts <= 250 and ranks_per_host >= 1):
        raise ConfigError(f"{hosts} hosts with {ranks_per_host} ranks each; use 1 to 250 hosts and at least 1 rank")
    return Lab(name, hosts, ranks_per_host, None if rate == "none" else parse_rate(rate))


def parse_rate(text: str) -> float:
    """'400mbit' -> 4e8 bits a second.

    Raises:
        ConfigError: the text is no rate.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", text)
    if not match or not float(match[1]):
        raise ConfigError(f"rate {text!r} can't be read; use a number and a unit: 800kbit, 400mbit, 1gbit; or none")
    return float(match[1]) * UNITS[match[2]]


def building(lab: Lab) -> list[Command]:
    """Commands that make the lab."""
    commands: list[Command] = [
        ("ip", "netns", "add", lab.switch),
        ("ip", "-n", lab.switch, "link", "add", BRIDGE, "mtu", str(MTU), "type", "bridge"),
        ("ip", "-n", lab.switch, "link", "set", BRIDGE, "up"),
    ]
    for host in range(lab.hosts):
        commands += _host(lab, host)
        if lab.rate_bit_per_s is not None:
            commands += shaping(lab.name, host, lab.rate_bit_per_s)
    return commands


def _host(lab: Lab, host: int) -> list[Command]:
    namespace, port = lab.namespace(host), _port(host)
    ends = ("mtu", str(MTU), "type", "veth", "peer", INTERFACE, "mtu", str(MTU), "netns", namespace)
    return [
        ("ip", "netns", "add", namespace),
        ("ip", "-n", namespace, "link", "set", "lo", "up"),
        ("ip", "-n", lab.switch, "link", "add", port, *ends),
        ("ip", "-n", lab.switch, "link", "set", port, "master", BRIDGE),
        ("ip", "-n", lab.switch, "link", "set", port, "up"),
        ("ip", "-n", namespace, "address", "add", f"{lab.address(host)}/16", "dev", INTERFACE),
        ("ip", "-n", namespace, "link", "set", INTERFACE, "up"),
    ]


def _port(host: int) -> str:
    return f"port{host}"


def shaping(name: str, host: int, bit_per_s: float) -> list[Command]:
    """Commands that set the rate of a host's link, also while it is in use."""
    burst = max(MIN_BURST_BYTES, round(bit_per_s / 8 * BURST_S))
    bucket = ("tbf", "rate", f"{bit_per_s:.0f}bit", "burst", str(burst), "latency", f"{QUEUE_MS}ms")
    return [("tc", "-n", end, "qdisc", "replace", "dev", dev, "root", *bucket) for end, dev in _ends(name, host)]


def _ends(name: str, host: int) -> tuple[tuple[str, str], tuple[str, str]]:
    """(namespace, device) at the host and at the switch."""
    prefix = namespace_prefix(name)
    return (f"{prefix}host{host}", INTERFACE), (f"{prefix}switch", _port(host))


def link_change(name: str, host: int, what: str) -> list[Command]:
    """Commands that cut a host's link, heal it, or give it another rate.

    A cut is made at the switch, as if the cable was pulled there: the host keeps its address, and its packets vanish.

    Raises:
        ConfigError: `what` is neither cut nor heal nor a rate.
    """
    if what in ("cut", "heal"):
        namespace, port = _ends(name, host)[1]
        return [("ip", "-n", namespace, "link", "set", port, "down" if what == "cut" else "up")]
    return shaping(name, host, parse_rate(what))


def inside(lab: Lab, host: int, command: Command) -> Command:
    """The command as it runs on a host. It ends when the lab's own process ends, however that happens."""
    return ("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", lab.namespace(host), *command)


def environment(lab: Lab, rank: int) -> dict[str, str]:
    """What torchrun would tell a rank, and the interface that gloo and NCCL are to use."""
    host, local_rank = divmod(rank, lab.ranks_per_host)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(lab.world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(lab.ranks_per_host),
        "GROUP_RANK": str(host),
        "GROUP_WORLD_SIZE": str(lab.hosts),
        "MASTER_ADDR": lab.address(0),
        "MASTER_PORT": str(MASTER_PORT),
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "NCCL_SOCKET_IFNAME": INTERFACE,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
