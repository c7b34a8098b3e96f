"""loop: a whole training run, from a config to a finished run folder. Every rank calls `train`.

Reads top to bottom: plan, join, data, engine, resume, steps, end. What each part does stands in its own file.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from internevo_engine.checkpoint.remote import open_storage
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.checkpoint.view import view_of
from internevo_engine.config.schema import Config
from internevo_engine.data.loader import Loader
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared, prepare
from internevo_engine.engine import Engine
from internevo_engine.errors import ConfigError, MemoryNeededError
from internevo_engine.interop.adapters import Base
from internevo_engine.interop.initial import fill
from internevo_engine.loop.evaluate import validate
from internevo_engine.loop.metrics import Meter
from internevo_engine.loop.recorder import Recorder
from internevo_engine.loop.report import last_words
from internevo_engine.loop.resume import Cursor, Start, check_settings, resume
from internevo_engine.loop.run_folder import folder_of
from internevo_engine.loop.stop import StopRequest, stop_on_request
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import architecture, is_adapter, parameters
from internevo_engine.models.initialize import TORCH_DTYPES, allocate, build, draw_all
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
    """Train to the end, or until asked to stop; leaves a checkpoint and RUN/final either way.

    Raises:
        EngineError: see errors.py; nothing that was written before is lost.
    """
    machine = probe_machine()
    device = choose_device(config.launch.device, machine)
    topology = local_topology(device, machine, world=place.world, local_world=place.local_world)
    plan = make_plan(config, parameters(config.model, config.lora), topology)
    check_memory(config, plan)
    torch_device = _use_device(device, place, machine, plan.mode)
    storage = open_storage(config.checkpoint.dir or str(folder_of(config) / "checkpoints"))
    goes_on = config.checkpoint.resume == "auto" and bool(storage.steps())
    if goes_on:
        check_settings(storage, config, plan)
    with joined(place, device.backend), _memory_named(config, place.rank):
        recorder = Recorder(config, plan, rank=place.rank, command=command, goes_on=goes_on)
        with recorder.state(), stop_on_request(recorder.stop_file) as stop:
            communicator = Communicator(place, torch_device, ())
            data = _prepare_data(config, communicator, recorder)
            base = _base(config, communicator)
            model = _build_model(config, plan, place, torch_device, recorder)
            engine = _build_engine(config, data, model, place, recorder)
            start = resume(config, engine, data, base, storage, communicator, recorder)
            saver = _saver(config, engine, storage, communicator, recorder, start)
            tokens, interrupted = _steps(config, engine, data, communicator, recorder, saver, stop, start, base)
            saver.save(engine.num_steps_done, Cursor.of(config, plan, data, tokens, base).as_extra())
            _end(config, engine, data, base, communicator, recorder, interrupted=interrupted)
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


def _base(config: Config, communicator: Communicator) -> Base | None:
    """The weights that a LoRA run leaves as they are; every byte is read, for nothing else remembers them."""
    if not config.lora.rank:
        return None
    if config.run.init is None:
        raise ConfigError("lora.rank: adapters stand beside weights that are there; name them with run.init=FOLDER")
    own = Base.of(Path(config.run.init)).model_dump_json() if communicator.rank == 0 else ""
    return Base.model_validate_json(communicator.agree("base", own)[0])


def _build_model(config: Config, plan: Plan, place: Place, device: torch.device, recorder: Recorder) -> Decoder:
    """With its initial values; those of run.init rank 0 alone, whose values the engine gives to all.

    A checkpoint to go on from holds all that is trained: only adapters need their base again.
    """
    recorder.say(
        f"{config.model.family}, {format_count(plan.num_params)} parameters in {plan.dtype}, on "
        f"{place.world} x {device.type}, {config.step_tokens(place.world):,} tokens a step, {config.run.steps} steps"
    )
    shape = (config.model, config.data.seq_len, TORCH_DTYPES[plan.dtype], device)
    if config.run.init is None or (recorder.goes_on and not config.lora.rank):
        return build(*shape, config.run.seed, config.lora)
    model = allocate(*shape, config.lora)
    draw_all(model, [p for p in plan.params if is_adapter(p.name)], architecture(config.model), config.run.seed)
    if place.rank == 0:
        recorder.say(f"beginning with the weights of {config.run.init}")
        fill(model, config)
    return model


def _build_engine(
    config: Config, data: Prepared, model: Decoder, place: Place, recorder: Recorder
) -> Engine[MicroBatch]:
    """An engine like anybody's; from the model it makes the plan that was printed."""
    return Engine(
        model,
        token_loss,
        **dict(config.step),
        example=data.train.micro_batch(0, 0, 1),
        place=place,
        say=recorder.say,
    )


def _saver(
    config: Config,
    engine: Engine[MicroBatch],
    storage: Storage,
    communicator: Communicator,
    recorder: Recorder,
    start: Start,
) -> Saver:
    view = view_of(engine.state, engine.plan, communicator.rank)
    return Saver(
        storage, view, communicator, run_id=start.run_id, keep=config.checkpoint.keep,
        rate_mb=config.checkpoint.rate_mb, published_step=start.step or None, say=recorder.say,
    )  # fmt: skip


def _steps(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    communicator: Communicator,
    recorder: Recorder,
    saver: Saver,
    stop: StopRequest,
    start: Start,
    base: Base | None,
) -> tuple[int, bool]:
    """All steps that are left, or as many as until a rank wants to stop; tokens consumed, and whether it did."""
    rank, world = communicator.rank, communicator.world
    meter = Meter(config.model, config.lora, config.data.seq_len, world, _device_name(communicator.device))
    loader = Loader(data.train, rank, world, config.data.grad_accum, start.step, config.run.steps - start.step)
    tokens = start.tokens
    with loader, recorder.progress() as bar:
        started = time.perf_counter()
        for micro_batches in loader:
            result = engine.step(micro_batches, stop=bool(stop) or saver.has_failed)
            seconds, step = time.perf_counter() - started, engine.num_steps_done
            tokens += result.tokens
            metrics = meter.measure(
                result, step=step, tokens=tokens, step_tokens=config.step_tokens(world),
                squared_lengths=sum(map(squared_lengths, micro_batches)), seconds=seconds,
            )  # fmt: skip
            recorder.step(metrics, engine.state.checksums())
            bar.advance(loss=metrics.loss, tgs=metrics.tgs)
            if result.stop and step < config.run.steps:
                return tokens, True
            if data.valid and _is_due(step, config.run.valid_every, config):
                recorder.validation(validate(engine, data.valid, communicator))
            saver.poll()
            if _is_due(step, config.checkpoint.every, config):
                extra = Cursor.of(config, engine.plan, data, tokens, base).as_extra()
                saver.save(step, extra, background=config.checkpoint.background)
            started = time.perf_counter()
    return tokens, False


def _is_due(step: int, every: int, config: Config) -> bool:
    """What happens every so many steps (0: never) is due; after the last step it belongs to the end."""
    return every > 0 and step % every == 0 and step < config.run.steps


def squared_lengths(batch: MicroBatch) -> int:
    """Sum of l^2 over the pieces of a pack: what attention costs."""
    return int(batch.cu_seqlens.diff().long().square().sum())


def _end(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    base: Base | None,
    communicator: Communicator,
    recorder: Recorder,
    *,
    interrupted: bool,
) -> None:
    """The checkpoint is published. The weights first: nothing that comes later can lose them."""
    with engine.whole_parameters():
        recorder.write_final(engine.model, data.tokenizer, base)
    if interrupted:
        recorder.draw()
        recorder.take_stop_file()
        recorder.set_state("interrupted")
        recorder.say(f"stopped on request after step {engine.num_steps_done}; the same command goes on from there")
    else:
        if data.valid:
            recorder.validation(validate(engine, data.valid, communicator))
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
