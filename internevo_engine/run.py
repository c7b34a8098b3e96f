"""python -m internevo_engine.run CONFIG [section.key=value ...]: the command line of training.

Everything up to the first step's need of it is done without torch, so that a mistake is answered at once.
"""

import argparse
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from internevo_engine.config.load import dump_config, load_config
from internevo_engine.config.schema import Config
from internevo_engine.errors import DONE, INTERNAL, INTERRUPTED, PREEMPTED, ConfigError, EngineError
from internevo_engine.loop.run_folder import folder_of, is_finished
from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import Plan, check_memory, describe, make_plan
from internevo_engine.plan.topology import Topology
from internevo_engine.runtime.attempt import SHOW_STACKS
from internevo_engine.runtime.launch import ALONE, Place, find_place
from internevo_engine.runtime.machine import choose_device, local_topology, probe_machine
from internevo_engine.runtime.nursery import nurse
from internevo_engine.runtime.supervise import supervise

GPUS_PER_HOST = 8
"""For machines that aren't there (--gpus N)."""

EPILOG = """\
examples:
  python -m internevo_engine.run configs/demo.yaml
  python -m internevo_engine.run configs/demo.yaml launch.nproc=2 run.steps=50 run.dir=runs/two
  python -m internevo_engine.run configs/7B.yaml --dry-run --gpus 1024 --zero.optim world
  torchrun --nproc-per-node 2 -m internevo_engine.run configs/demo.yaml
exit codes: 0 done, 2 config, 3 data, 4 checkpoint, 5 storage, 6 lost rank, 7 hang, 9 numbers, 10 corruption,
            12 memory, 70 internal, 75 stopped after a checkpoint (the same command goes on), 130 Ctrl-C
"""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code. One line per problem, no traceback, except for our own bugs."""
    place = None
    try:
        arguments, overrides = parse(argv)
        if arguments.nursery is not None:
            return _nurse(arguments.nursery, argv)
        place = find_place(arguments.join, os.environ)
        _leave_stacks(place)
        return _run(arguments, overrides, place, argv)
    except ConfigError as error:
        _complain(place, error.problems)
        return error.exit_code
    except EngineError as error:
        _complain(place, [str(error)])
        return error.exit_code
    except KeyboardInterrupt:
        _complain(place, ["interrupted at once; the same command goes on from the newest checkpoint"])
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        _complain(place, ["this is a bug in internevo_engine; please report it with the traceback above"])
        return INTERNAL


def _run(arguments: argparse.Namespace, overrides: Sequence[str], place: Place | None, argv: Sequence[str]) -> int:
    if arguments.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
        return DONE
    config = load_config(arguments.config, [*overrides, *(["checkpoint.resume=never"] if arguments.fresh else [])])
    if arguments.print_config:
        print(dump_config(config), end="")
        return DONE
    if arguments.dry_run:
        print(_dry_run(config, arguments.gpus))
        return DONE
    if is_finished(config):
        print(f"{folder_of(config)} is finished; its report is in report.txt; --fresh moves it aside and starts again")
        return DONE
    command = [sys.executable, "-m", "internevo_engine.run", *argv]
    if place is None:
        plan = _plan(config)
        if plan.topology.world > 1:
            return _supervise(command, config, plan)
    from internevo_engine.loop.train import train  # imports torch

    result = train(config, place or ALONE, command)
    return PREEMPTED if result.interrupted else DONE


def _supervise(command: Sequence[str], config: Config, plan: Plan) -> int:
    from internevo_engine.checkpoint.remote import storage_of

    folder = folder_of(config)
    storage = storage_of(config, folder)
    return supervise(
        command,
        plan.topology.world,
        restarts=config.launch.restarts,
        newest=lambda: max(storage.steps(), default=0),
        run=folder,
    )


def _nurse(fd: int, argv: Sequence[str]) -> int:
    """Ranks are this very command, forked when all that they need is imported."""
    import internevo_engine.loop.train  # noqa: F401 - it takes seconds

    words = argv[: argv.index("--nursery")]
    return nurse(fd, lambda place: leave(main([*words, "--join", place.as_join()])))


def topology_of(config: Config, gpus: int | None) -> Topology:
    """The ranks that the bare command would start here, or `gpus` GPUs that need not be there."""
    if gpus is not None:
        return Topology(gpus, min(gpus, GPUS_PER_HOST), "cuda")
    machine = probe_machine()
    device = choose_device(config.launch.device, machine)
    nproc = device.default_nproc(machine) if config.launch.nproc == "auto" else config.launch.nproc
    return local_topology(device, machine, world=nproc, local_world=nproc)


def _plan(config: Config, gpus: int | None = None) -> Plan:
    """Raises PlanError and MemoryNeededError; the memory of machines that aren't there is not checked."""
    plan = make_plan(config, parameters(config.model, config.lora), topology_of(config, gpus))
    check_memory(config, plan)
    return plan


def _dry_run(config: Config, gpus: int | None) -> str:
    """All checks and the plan, for this machine or for one with `gpus` GPUs."""
    from internevo_engine.data.prepare import check_sources  # imports torch
    from internevo_engine.interop.initial import check_initial

    check_sources(config)
    check_initial(config)
    return f"{describe(config, _plan(config, gpus))}\nnothing was trained: this was a dry run"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the command, and config overrides in either spelling: a.b=c or --a.b c."""
    options, overrides = [], []
    rest = iter(argv)
    for word in rest:
        name, equals, _ = word.partition("=")
        if word.startswith("--") and "." in name:
            overrides.append(word[2:] if equals else f"{word[2:]}={next(rest, '')}")
        elif equals and not word.startswith("-"):
            overrides.append(word)
        else:
            options.append(word)
    parser = argparse.ArgumentParser(
        prog="python -m internevo_engine.run",
        description="Train a language model as the YAML file CONFIG says.",
        usage="%(prog)s CONFIG [section.key=value ...] [--section.key value ...] [options]",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file, such as configs/demo.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="all checks, the plan, memory per rank; nothing is trained"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help=f"with --dry-run: plan for N GPUs, {GPUS_PER_HOST} a host"
    )
    parser.add_argument("--print-config", action="store_true", help="print the whole configuration, defaults included")
    parser.add_argument("--schema", action="store_true", help="print the configuration's JSON Schema, for editors")
    parser.add_argument("--fresh", action="store_true", help="move an earlier run in the same folder aside, start anew")
    parser.add_argument("--join", help=argparse.SUPPRESS)
    parser.add_argument("--nursery", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(options)
    if arguments.config is None and not arguments.schema:
        parser.error("CONFIG is missing; try configs/demo.yaml")
    if arguments.gpus is not None and (arguments.gpus < 1 or not arguments.dry_run):
        parser.error("--gpus takes a positive number and goes with --dry-run")
    return arguments, overrides


def _complain(place: Place | None, problems: Sequence[str]) -> None:
    for problem in problems:
        rank = f"rank {place.rank}: " if place and place.world > 1 and not problem.startswith("rank ") else ""
        line = f"error: {rank}{problem}"
        print(line, file=sys.stderr, flush=True)
        if place is not None and place.words >= 0:
            os.write(place.words, f"{line}\n".encode())


def _leave_stacks(place: Place | None) -> None:
    """A rank of ours that crashes, or is asked to, leaves the stacks of its threads for RUN/failure.json."""
    if place is not None and place.words >= 0:
        faulthandler.enable(place.words)
        faulthandler.register(SHOW_STACKS, place.words)


def leave(code: int) -> NoReturn:
    """End the process."""
    sys.stdout.flush()
    if code not in (DONE, PREEMPTED, INTERRUPTED):
        os._exit(code)  # without teardown, which may wait for ranks that are gone
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
