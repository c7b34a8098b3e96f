"""loop: what a run begins with: a device, data, weights and an engine. train.py calls these in this order."""

from pathlib import Path

import torch

from internevo_engine.config.schema import Config
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared, cache_of, prepare
from internevo_engine.engine import Engine
from internevo_engine.errors import ConfigError
from internevo_engine.interop.adapters import Base
from internevo_engine.interop.initial import fill
from internevo_engine.loop.recorder import Recorder
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.families import architecture, is_adapter
from internevo_engine.models.initialize import TORCH_DTYPES, allocate, build, draw_all
from internevo_engine.models.loss import token_loss
from internevo_engine.plan.plan import Plan
from internevo_engine.program import Mode
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.launch import Place
from internevo_engine.runtime.machine import Device, Machine
from internevo_engine.units import format_count


def use_device(device: Device, place: Place, machine: Machine, mode: Mode) -> torch.device:
    if device.name == "cuda":
        torch.cuda.set_device(place.local_rank)
        return torch.device("cuda", place.local_rank)
    # A matrix product's bits depend on how many threads share it, and that must not depend on the number of ranks.
    torch.set_num_threads(1 if mode == "invariant" else max(1, machine.num_cpus // place.local_world))
    return torch.device("cpu")


def prepare_data(config: Config, communicator: Communicator, recorder: Recorder) -> Prepared:
    if config.data.train == "random":
        recorder.say("training on random tokens: no corpus was given (data.train=path/to/text trains on yours)")
    with communicator.rank_0_first("data"):
        return prepare(config, cache_of(config, recorder.path), recorder.say)


def frozen_base(config: Config, communicator: Communicator) -> Base | None:
    """The weights that a LoRA run leaves as they are; every byte is read, for nothing else remembers them."""
    if not config.lora.rank:
        return None
    if config.run.init is None:
        raise ConfigError("lora.rank: adapters stand beside weights that are there; name them with run.init=FOLDER")
    own = Base.of(Path(config.run.init)).model_dump_json() if communicator.rank == 0 else ""
    return Base.model_validate_json(communicator.agree("base", own)[0])


def build_model(config: Config, plan: Plan, place: Place, device: torch.device, recorder: Recorder) -> Decoder:
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


def build_engine(
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
