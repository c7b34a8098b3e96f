"""An emulated cluster on one machine: hosts are network namespaces, links have a rate. Linux, as root.

    python -m bench.lab run --hosts 2 --ranks-per-host 2 --rate 400mbit -- COMMAND ...
    python -m bench.lab check --rate 400mbit         the rate as plain sockets find it, both directions at once
    python -m bench.lab link 1 cut|heal|100mbit      while a run goes on

`run` starts COMMAND once for every rank, with the environment that torchrun would give, and returns the exit code of
the first rank that failed. Ranks of one host talk to each other without limit.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from bench.lab.layout import Lab, link_change, make_lab
from bench.lab.network import measure_line_rate, missing, namespaces, network, run, traffic
from bench.lab.ranks import run_ranks
from internevo_engine.errors import DONE, ConfigError, EngineError
from internevo_engine.units import format_bytes

TOLERATED = 0.05
"""Share by which the measured rate may differ from the asked one without a warning."""


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; a signal gives 128 + its number, after cleaning up."""
    arguments = _parser().parse_args(argv)
    try:
        with _signals_raised():
            return arguments.verb(arguments)
    except _SignalError as error:
        return 128 + error.number
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="run|check|link")
    for name, verb in (("run", _run), ("check", _check)):
        sub = verbs.add_parser(name)
        sub.set_defaults(verb=verb)
        sub.add_argument("--hosts", type=int, default=2)
        sub.add_argument("--rate", default="none", help="of each host's link, each direction: 400mbit, 1gbit, none")
        sub.add_argument("--lab", default="lab", help="name, to have several at once")
        if verb is _run:
            sub.add_argument("--ranks-per-host", type=int, default=1)
            sub.add_argument("--json", type=Path, metavar="FILE", help="write rate and bytes of each interface")
            sub.add_argument("command", nargs="+", metavar="-- COMMAND")
    link = verbs.add_parser("link")
    link.set_defaults(verb=_link)
    link.add_argument("host", type=int)
    link.add_argument("what", metavar="cut|heal|RATE")
    link.add_argument("--lab", default="lab")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    lab = make_lab(arguments.lab, arguments.hosts, arguments.ranks_per_host, arguments.rate)
    with network(lab):
        rate = _checked_rate(lab)
        before, begin = traffic(lab), time.monotonic()
        code = run_ranks(lab, tuple(arguments.command))
        seconds, after = time.monotonic() - begin, traffic(lab)
    if arguments.json:
        hosts = [asdict(now - then) for now, then in zip(after, before, strict=True)]
        report = {"lab": asdict(lab), "line_rate_bytes_per_s": rate, "seconds": seconds, "exit_code": code}
        arguments.json.write_text(json.dumps(report | {"hosts": hosts}, indent=1) + "\n")
    return code


def _check(arguments: argparse.Namespace) -> int:
    lab = make_lab(arguments.lab, arguments.hosts, 1, arguments.rate)
    with network(lab):
        _checked_rate(lab)
    return DONE


def _checked_rate(lab: Lab) -> float:
    """Measured line rate in bytes per second; said on stderr, so that the ranks' output stays alone on stdout."""
    rate = measure_line_rate(lab)
    text = f"lab: each link carries {format_bytes(rate)}/s each way, both ways at once"
    if lab.rate_bit_per_s is not None:
        share = 8 * rate / lab.rate_bit_per_s
        warning = "" if abs(share - 1) <= TOLERATED else "; WARNING: not what was asked, is the machine busy?"
        text += f", {share:.1%} of the {format_bytes(lab.rate_bit_per_s / 8)}/s asked{warning}"
    print(text, file=sys.stderr, flush=True)
    return rate


def _link(arguments: argparse.Namespace) -> int:
    commands = link_change(arguments.lab, arguments.host, arguments.what)
    if lack := missing():
        raise ConfigError(f"the lab needs Linux, root, ip and tc; here: {lack}")
    hosts = [name for name in namespaces(arguments.lab) if name.endswith(f"-host{arguments.host}")]
    if not hosts:
        raise ConfigError(f"no lab called {arguments.lab} with a host {arguments.host} is running; see --lab")
    run(commands)
    return DONE


class _SignalError(BaseException):
    """A signal asks us to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals_raised() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP become an exception, so that every `finally` on the way out cleans up."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def fail(number: int, _frame: object) -> None:
        for each in ending:
            signal.signal(each, signal.SIG_IGN)  # cleaning up must not be cut short by a second one
        raise _SignalError(number)

    kept = {number: signal.signal(number, fail) for number in ending}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
