"""loop: a whole training run, from a config to a finished run folder. Every rank calls `train`.

Reads top to bottom: plan, join, data, engine, steps, end. What each part does stands in its own file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from internevo_engine.config.schema import Config
from internevo_engine.data.loader import Loader
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared, prepare
from internevo_engine.engine import Engine
from internevo_engine.errors import MemoryNeededError
from internevo_engine.loop.evaluate import validate
from internevo_engine.loop.metrics import Meter
from internevo_engine.loop.recorder import Recorder
from internevo_engine.loop.report import last_words
from internevo_engine.loop.stop import StopRequest, stop_on_signal
from internevo_engine.models.families import parameters
from internevo_engine.models.initialize import TORCH_DTYPES, build
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import Plan, check_memory, make_plan
from internevo_engine.program import Mode
from internevo_engine.runtime.communicator import Communicator, joined
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.machine import Device, Machine, choose_device, local_topology, probe_machine
from internevo_engine.units import format_count


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    steps_done: int
    interrupted: bool
    folder: Path


def train(config: Config, place: Place = ALONE, command: Sequence[str] = ()) -> TrainResult:
    """Train to the end, or until Ctrl-C; leaves RUN/final either way.

    Raises:
        EngineError: see errors.py; nothing that was written before is lost.
    """
    machine = probe_machine()
    device = choose_device(config.launch.device, machine)
    topology = local_topology(device, machine, world=place.world, local_world=place.local_world)
    plan = make_plan(config, parameters(config.model), topology)
    check_memory(config, plan)
    torch_device = _use_device(device, place, machine, plan.mode)
    with joined(place, device.backend), _memory_named(config, place.rank):
        recorder = Recorder(config, plan, rank=place.rank, command=command)
        with recorder.state():
            communicator = Communicator(place, torch_device, ())
            data = _prepare_data(config, communicator, recorder)
            engine = _build_engine(config, plan, data, place, torch_device, recorder)
            with stop_on_signal() as stop:
                interrupted = _steps(config, engine, data, communicator, recorder, stop)
            _end(config, engine, data, communicator, recorder, interrupted=interrupted)
    return TrainResult(engine.num_steps_done, interrupted, recorder.path)


def _use_device(device: Device, place: Place, machine: Machine, mode: Mode) -> torch.device:
    if device.name == "cuda":
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    # A matrix product's bits depend on how many threads share it, and that must not depend on the number of ranks.
    torch.set_num_threads(1 if mode == "invariant" else max(1, machine.num_cpus // place.local_world))
    return torch.device("cpu")


def _prepare_data(config: Config, communicator: Communicator, recorder: Recorder) -> Prepared:
    if config.data.train == "random":
        recorder.say("training on random tokens: no corpus was given (data.train=path/to/text trains on yours)")
    cache = Path(config.data.cache) if config.data.cache else recorder.path.parent / "tokens"
    with communicator.rank_0_first("data"):
        return prepare(config, cache, recorder.say)


def _build_engine(
    config: Config, plan: Plan, data: Prepared, place: Place, device: torch.device, recorder: Recorder
) -> Engine[MicroBatch]:
    """An engine like anybody's; from the model it makes the plan that was printed."""
    recorder.say(
        f"{config.model.family}, {format_count(plan.num_params)} parameters in {plan.dtype}, on "
        f"{place.world} x {device.type}, {config.step_tokens(place.world):,} tokens a step, {config.run.steps} steps"
    )
    return Engine(
        build(config.model, config.data.seq_len, TORCH_DTYPES[plan.dtype], device, config.run.seed),
        token_loss,
        **dict(config.step),
        example=data.train.micro_batch(0, 0, 1),
        place=place,
        say=recorder.say,
    )


def _steps(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    communicator: Communicator,
    recorder: Recorder,
    stop: StopRequest,
) -> bool:
    """All steps, or as many as until a rank was asked to stop; True if so."""
    rank, world = communicator.rank, communicator.world
    meter = Meter(config.model, config.data.seq_len, world, _device_name(communicator.device))
    loader = Loader(data.train, rank, world, config.data.grad_accum, first_step=0, num_steps=config.run.steps)
    tokens = 0
    with loader, recorder.progress() as bar:
        started = time.perf_counter()
        for micro_batches in loader:
            result = engine.step(micro_batches, stop=bool(stop))
            seconds, step = time.perf_counter() - started, engine.num_steps_done
            tokens += result.tokens
            metrics = meter.measure(
                result, step=step, tokens=tokens, step_tokens=config.step_tokens(world),
                squared_lengths=sum(map(squared_lengths, micro_batches)), seconds=seconds,
            )  # fmt: skip
            recorder.step(metrics, engine.state.checksums())
            bar.advance(loss=metrics.loss, tgs=metrics.tgs)
            if result.stop and step < config.run.steps:
                return True
            if data.valid is not None and _is_due(step, config):
                recorder.validation(validate(engine, data.valid, rank=rank, world=world))
            started = time.perf_counter()
    return False


def _is_due(step: int, config: Config) -> bool:
    """A validation is due; the one after the last step belongs to the end."""
    return config.run.valid_every > 0 and step % config.run.valid_every == 0 and step < config.run.steps


def squared_lengths(batch: MicroBatch) -> int:
    """Sum of l^2 over the pieces of a pack: what attention costs."""
    return int(batch.cu_seqlens.diff().long().square().sum())


def _end(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    communicator: Communicator,
    recorder: Recorder,
    *,
    interrupted: bool,
) -> None:
    """The weights first: nothing that comes later can lose them."""
    with engine.whole_parameters():
        recorder.write_final(engine.model, data.tokenizer)
    if interrupted:
        recorder.draw()
        recorder.set_state("interrupted")
        recorder.say(f"stopped on request after step {engine.num_steps_done}; the weights are in {recorder.path}/final")
    else:
        if data.valid is not None:
            recorder.validation(validate(engine, data.valid, rank=communicator.rank, world=communicator.world))
        recorder.draw()
        with engine.whole_parameters():
            recorder.last_words(lambda: last_words(recorder.path, config, engine, data))
        recorder.set_state("finished")
    engine.close()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@contextmanager
def _memory_named(config: Config, rank: int) -> Iterator[None]:
    """An allocation that fails says which keys make the next try smaller."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        data = config.data
        raise MemoryNeededError(
            f"rank {rank}: out of memory: {str(error).splitlines()[0]} To use less: data.micro_batch "
            f"(now {data.micro_batch}; raise data.grad_accum to keep the batch), zero.optim=world, or data.seq_len "
            f"(now {data.seq_len}); --dry-run prints the forecast"
        ) from error
