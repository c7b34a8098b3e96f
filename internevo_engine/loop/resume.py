"""loop: where a run begins: at step 0, or behind the newest checkpoint, if it is one of this run.

What shapes the numbers must be as it was: settings, tokens a step, dtype, data. All else may change.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from pydantic import BaseModel, ConfigDict, JsonValue, TypeAdapter, ValidationError

from internevo_engine.checkpoint.load import read_manifest
from internevo_engine.checkpoint.manifest import Manifest
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.config.load import numeric_differences
from internevo_engine.config.schema import Config
from internevo_engine.data.packing import MicroBatch
from internevo_engine.data.prepare import Prepared
from internevo_engine.engine import Engine
from internevo_engine.errors import CheckpointError, ConfigError, DataError
from internevo_engine.interop.adapters import Base
from internevo_engine.loop.numbers import Numbers, Skip
from internevo_engine.loop.recorder import Recorder
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator

_SKIPS = TypeAdapter(tuple[Skip, ...])


@dataclass(frozen=True)
class Progress:
    """Where a run stands, besides the states of the engine."""

    run_id: str
    loaded_step: int | None = None
    """Of the checkpoint that it goes on from; None: it began anew."""
    tokens: int = 0
    """Valid tokens consumed."""
    numbers: Numbers = field(default_factory=Numbers)
    base: Base | None = None
    """The frozen weights beside which a LoRA run's adapters stand."""


class Cursor(BaseModel):
    """What the loop adds to a checkpoint: with the step, all that the next step depends on besides the states.

    Batches are a pure function of (run.seed, batch, number), and nothing else is random after initialization.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    config: Config
    micro_batches_per_step: int
    """Over all ranks; times the step, where in the data the next one begins."""
    tokens: int
    """Valid tokens consumed."""
    data_sha256: dict[str, str]
    """Of each entry of data.train."""
    numbers: Numbers = Numbers()
    """With the step, which batch comes next, and what a spike is."""
    base_sha256: str | None = None
    """Of the frozen weights beside which a LoRA run's adapters stand; the checkpoint doesn't hold them."""

    @classmethod
    def of(cls, config: Config, plan: Plan, data: Prepared, progress: Progress) -> "Cursor":
        return cls(
            config=config,
            micro_batches_per_step=plan.micro_batches_per_step,
            tokens=progress.tokens,
            data_sha256=dict(data.digests),
            numbers=progress.numbers,
            base_sha256=progress.base.sha256 if progress.base else None,
        )

    def as_extra(self) -> dict[str, JsonValue]:
        return self.model_dump(mode="json")


def resume(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    base: Base | None,
    storage: Storage,
    communicator: Communicator,
    recorder: Recorder,
) -> Progress:
    """Load the newest checkpoint into the engine, where the run folder says that there is one to go on from.

    Raises:
        CheckpointError: there are checkpoints, and none verifies.
        ConfigError: the checkpoint is of another run, or settings that shape the numbers differ.
        DataError: the data differs.
    """
    run_id, goes_on = communicator.agree("run", f"{recorder.run_id} {recorder.goes_on}")[0].split(" ")
    if goes_on != "True":
        if storage.steps():
            raise ConfigError(
                f"{storage.url} holds the checkpoints of an earlier run; choose another checkpoint.dir=..."
            )
        return Progress(run_id, base=base)
    return go_back(config, engine, data, base, storage, communicator, recorder, run_id)


def go_back(
    config: Config,
    engine: Engine[MicroBatch],
    data: Prepared,
    base: Base | None,
    storage: Storage,
    communicator: Communicator,
    recorder: Recorder,
    run_id: str,
) -> Progress:
    """Load the newest checkpoint of this run; its records follow. What was left out after it was published stays out.

    Raises: as `resume`.
    """
    same_run = partial(accept, config=config, plan=engine.plan, data=data, base=base, run_id=run_id)
    manifest = engine.load(storage.url, accept=same_run)
    recorder.go_on_from(manifest.step)
    cursor = cursor_of(manifest)
    recorded = communicator.agree("skips", _SKIPS.dump_json(recorder.skips()).decode())[0]
    skips = max(cursor.numbers.skips, _SKIPS.validate_json(recorded), key=len)  # the run folder may be lost
    numbers = cursor.numbers.model_copy(update={"skips": skips})
    return Progress(manifest.run_id, manifest.step, cursor.tokens, numbers, base)


def check_settings(storage: Storage, config: Config, plan: Plan) -> None:
    """Refuse early, before anything is built: as `accept`, by the newest checkpoint whose manifest can be read."""
    for step in reversed(storage.steps()):
        try:
            manifest = read_manifest(storage.published(step), step)
        except CheckpointError:
            continue  # the load will say so
        return _check_settings(manifest, config, plan)


def cursor_of(manifest: Manifest) -> Cursor:
    """Raises CheckpointError where the checkpoint is not the loop's."""
    try:
        return Cursor.model_validate_json(json.dumps(manifest.extra))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} was not written by this version's training loop: {place}: "
            f"{first['msg']}"
        ) from None


def accept(manifest: Manifest, config: Config, plan: Plan, data: Prepared, base: Base | None, run_id: str) -> None:
    """Raises ConfigError or DataError where going on would not be the same run."""
    if run_id not in ("None", manifest.run_id):
        raise ConfigError(
            f"the checkpoint of step {manifest.step} belongs to run {manifest.run_id}, the run folder to run {run_id}; "
            "choose another run.dir or checkpoint.dir"
        )
    _check_settings(manifest, config, plan)
    _check_base(cursor_of(manifest).base_sha256, base)
    _check_data(cursor_of(manifest).data_sha256, data.digests, config.checkpoint.changed_data)


def _check_settings(manifest: Manifest, config: Config, plan: Plan) -> None:
    differences = settings_differences(cursor_of(manifest), manifest.plan.dtype, config, plan)
    if differences:
        raise ConfigError(
            f"the run was trained for {manifest.step} steps with other settings ({'; '.join(differences)}); give this "
            "one a folder of its own with run.dir=..., or move the old one aside with --fresh"
        )


def settings_differences(old: Cursor, old_dtype: str, new: Config, plan: Plan) -> list[str]:
    """What shapes the numbers and differs. run.steps may grow, ranks may change if data.grad_accum makes up for it."""
    steps = max(old.config.run.steps, new.run.steps)
    was = old.config.model_copy(
        update={
            "model": old.config.model.model_copy(update={"dtype": old_dtype}),
            "data": old.config.data.model_copy(update={"grad_accum": new.data.grad_accum}),
            "run": old.config.run.model_copy(update={"steps": steps}),
        }
    )
    now = new.model_copy(update={"model": new.model.model_copy(update={"dtype": plan.dtype})})
    differences = numeric_differences(was, now)
    if old.micro_batches_per_step != plan.micro_batches_per_step:
        differences.append(
            f"data.grad_accum x ranks: {old.micro_batches_per_step} -> "
            f"{new.data.grad_accum} x {plan.topology.world} = {plan.micro_batches_per_step}"
        )
    return differences


def _check_base(old: str | None, base: Base | None) -> None:
    if base is not None and base.sha256 != old:
        raise DataError(
            f"run.init={base.path} has SHA-256 {base.sha256}, the checkpoint's adapters were trained beside {old}; "
            "bring the old weights back"
        )


def _check_data(old: Mapping[str, str], new: Mapping[str, str], allowed: tuple[str, ...]) -> None:
    changed = [name for name in new if name not in allowed and old.get(name) != new[name]]
    if changed:
        raise DataError(
            f"data.train: '{changed[0]}' has SHA-256 {new[changed[0]]}, the checkpoint was trained on "
            f"{old.get(changed[0])}; bring the old data back, or go on with checkpoint.changed_data=['{changed[0]}']"
        )
