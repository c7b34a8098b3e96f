"""loop: a whole training run, from a config to a finished run folder. Every rank calls `train`.

Reads top to bottom: plan, join, data, engine, resume, steps, end. What each part does stands in its own file.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from internevo_engine.checkpoint.remote import storage_of
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.checkpoint.view import view_of
from internevo_engine.config.schema import Config
from internevo_engine.data.loader import Loader
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared
from internevo_engine.engine import Engine
from internevo_engine.errors import MemoryNeededError, NumbersError
from internevo_engine.faults import fault, plan_of_faults
from internevo_engine.interop.adapters import Base
from internevo_engine.loop.begin import build_engine, build_model, frozen_base, prepare_data, use_device
from internevo_engine.loop.evaluate import validate
from internevo_engine.loop.guard import Guard
from internevo_engine.loop.metrics import Meter
from internevo_engine.loop.recorder import Recorder
from internevo_engine.loop.report import last_words
from internevo_engine.loop.resume import Cursor, Progress, check_settings, go_back, resume
from internevo_engine.loop.run_folder import folder_of, is_of_job
from internevo_engine.loop.stop import StopRequest, stop_on_request
from internevo_engine.models.families import parameters
from internevo_engine.plan.plan import check_memory, make_plan
from internevo_engine.runtime.communicator import Communicator, joined
from internevo_engine.runtime.extension import arm_faults, faults_in_step
from internevo_engine.runtime.launch import ALONE, Place
from internevo_engine.runtime.machine import choose_device, local_topology, probe_machine
from internevo_engine.runtime.watch import Watch, watched


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
    torch_device = use_device(device, place, machine, plan.mode)
    storage = storage_of(config, folder_of(config))
    is_restart = is_of_job(folder_of(config), place.job)
    goes_on = (is_restart or config.checkpoint.resume == "auto") and bool(storage.steps())
    if goes_on:
        check_settings(storage, config, plan)
    with joined(place, device.backend), watched(place) as watch, _memory_named(config, place.rank):
        place = watch.place
        recorder = Recorder(config, plan, rank=place.rank, command=command, goes_on=goes_on, job=place.job)
        with recorder.state(), stop_on_request(recorder.stop_file) as stop:
            communicator = Communicator(place, torch_device, ())
            data = prepare_data(config, communicator, recorder)
            base = frozen_base(config, communicator)
            watch.enter("compile")
            model = build_model(config, plan, place, torch_device, recorder)
            engine = build_engine(config, data, model, place, recorder)
            recorder.keep_program(engine.program)
            # not before: what building sends depends on what earlier starts have measured
            if faults := plan_of_faults(os.environ, allowed=config.run.allow_faults):
                arm_faults(faults, seed=config.run.seed, rank=place.rank, log=recorder.faults_armed(faults))
            watch.enter("load")
            progress = resume(config, engine, data, base, storage, communicator, recorder)
            saver = _saver(config, engine, storage, communicator, recorder, progress)
            if config.run.bad_step == "rewind" and progress.loaded_step is None:
                saver.save(0, Cursor.of(config, plan, data, progress).as_extra())
            back = partial(go_back, config, engine, data, base, storage, communicator, recorder, progress.run_id)
            watch.enter("loop")
            progress, interrupted = _steps(
                config, engine, data, communicator, recorder, saver, stop, progress, back, watch
            )
            watch.enter("save")
            saver.save(engine.num_steps_done, Cursor.of(config, plan, data, progress).as_extra())
            watch.enter("end")
            _end(config, engine, data, base, communicator, recorder, interrupted=interrupted)
    return TrainResult(engine.num_steps_done, interrupted, recorder.path)


def _saver(
    config: Config,
    engine: Engine[MicroBatch],
    storage: Storage,
    communicator: Communicator,
    recorder: Recorder,
    progress: Progress,
) -> Saver:
    view = view_of(engine.state, engine.plan, communicator.rank)
    return Saver(
        storage, view, communicator, run_id=progress.run_id, keep=config.checkpoint.keep,
        rate_mb=config.checkpoint.rate_mb, published_step=progress.loaded_step, say=recorder.say,
    )  # fmt: skip


def _steps(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    communicator: Communicator,
    recorder: Recorder,
    saver: Saver,
    stop: StopRequest,
    progress: Progress,
    back: Callable[[], Progress],
    watch: Watch,
) -> tuple[Progress, bool]:
    """All steps that are left, or as many as until a rank wants to stop; where the run stands then, and whether it did.

    Args:
        back: goes on from the newest checkpoint.
    """
    world = communicator.world
    meter = Meter(config.model, config.lora, config.data.seq_len, world, _device_name(communicator.device))
    loader = Loader(data.train, communicator.rank, world, config.data.grad_accum)
    guard = Guard(config, engine, communicator)
    with loader, recorder.progress() as bar:
        started = time.perf_counter()
        while engine.num_steps_done < config.run.steps:
            numbers, number = progress.numbers, engine.num_steps_done + 1
            faults_in_step(number)
            fault("data")
            micro_batches = loader.take(numbers.batch(engine.num_steps_done))
            fault("step")
            guard.before(number)
            try:
                wants_to_stop = bool(stop) or saver.has_failed
                with watch.step(number):
                    result = engine.step(micro_batches, stop=wants_to_stop, limits=numbers.limits(config.run))
            except NumbersError as error:
                with watch.phase("load"):
                    progress = _leave_out(error, config, engine, recorder, saver, progress, back)
                started = time.perf_counter()
                continue
            guard.after(engine.num_steps_done)
            seconds, step = time.perf_counter() - started, engine.num_steps_done
            numbers = numbers.after(result.loss, result.grad_norm, config.run)
            progress = replace(progress, tokens=progress.tokens + result.tokens, numbers=numbers)
            metrics = meter.measure(
                result, step=step, tokens=progress.tokens, step_tokens=config.step_tokens(world),
                squared_lengths=sum(map(squared_lengths, micro_batches)), seconds=seconds, skipped=numbers.num_skipped,
            )  # fmt: skip
            recorder.step(metrics, engine.state.checksums())
            bar.show(step, loss=metrics.loss, tgs=metrics.tgs)
            if result.stop and step < config.run.steps:
                return progress, True
            if data.valid and _is_due(step, config.run.valid_every, config):
                fault("evaluate")
                with watch.phase("evaluate"):
                    recorder.validation(validate(engine, data.valid, communicator))
            saver.poll()
            if _is_due(step, config.checkpoint.every, config):
                extra = Cursor.of(config, engine.plan, data, progress).as_extra()
                with watch.phase("save"):
                    saver.save(step, extra, background=config.checkpoint.background)
            started = time.perf_counter()
    return progress, False


def _leave_out(
    error: NumbersError,
    config: Config,
    engine: Engine[MicroBatch],
    recorder: Recorder,
    saver: Saver,
    progress: Progress,
    back: Callable[[], Progress],
) -> Progress:
    """After a bad step, which has updated nothing: where to go on. See numbers.py.

    Raises:
        NumbersError: it is one too many.
    """
    bad_batch = progress.numbers.batch(engine.num_steps_done)
    if config.run.bad_step == "rewind":
        saver.wait()
        progress = back()
    numbers = progress.numbers.without(
        bad_batch, engine.num_steps_done, per_batch=engine.plan.micro_batches_per_step, why=error.complaint
    )
    recorder.left_out(numbers.skips)
    numbers.check(config.run)
    return replace(progress, numbers=numbers)


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
