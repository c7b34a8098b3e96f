"""Engine: training steps of any module, for the loop and for people with a loop of their own.

`graph.mode` decides once what a step is: a captured Program that C++ executes (runtime/graph_step.py), or eager
autograd with hooks (runtime/hooks_step.py). Both take micro-batches and give the same four totals.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Generic, Protocol, Self, TypeVar
from uuid import uuid4

import torch
from pydantic import JsonValue

from internevo_engine.checkpoint.load import Accept, load_newest
from internevo_engine.checkpoint.manifest import Manifest
from internevo_engine.checkpoint.remote import open_storage
from internevo_engine.checkpoint.save import Saver
from internevo_engine.checkpoint.storage import Storage
from internevo_engine.checkpoint.view import view_of
from internevo_engine.errors import CheckpointError, DataError, NumbersError
from internevo_engine.optim.schedules import learning_rate
from internevo_engine.plan.plan import Plan
from internevo_engine.runtime.communicator import Communicator
from internevo_engine.runtime.extension import load_extension
from internevo_engine.runtime.graph_step import GraphStep
from internevo_engine.runtime.hooks_step import HooksStep
from internevo_engine.runtime.optimizers import OPTIMIZERS
from internevo_engine.runtime.sharded_state import ShardedState


class Batch(Protocol):
    """Whatever the loss function takes; the engine only moves it to the device."""

    def to(self, device: torch.device) -> Self: ...


B = TypeVar("B", bound=Batch)
LossFunction = Callable[[torch.nn.Module, B], tuple[torch.Tensor, torch.Tensor]]
"""(model, batch) -> (sum of the loss over valid tokens, number of valid tokens), both 0-dim."""
STEPS = {"graph": GraphStep, "hooks": HooksStep}
KEPT_CHECKPOINTS = 3
"""By `Engine.save`; the loop has checkpoint.keep."""


@dataclass(frozen=True)
class StepResult:
    """What one update did, summed over all micro-batches and ranks."""

    loss: float
    """Mean over valid tokens, in nats."""
    grad_norm: float
    """Global norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """Valid tokens."""
    stop: bool
    """Some rank asked to stop after this step."""


class Engine(Generic[B]):
    """Trains `model` by the plan. All ranks call the same methods in the same order."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: LossFunction[B],
        plan: Plan,
        communicator: Communicator,
        *,
        example: B,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Capture the step and take over the model's parameters, whole and equal on all ranks.

        Args:
            example: a micro-batch like all others; only shapes and dtypes are read.
            say: hears what takes time.
        """
        load_extension()
        self.model, self.plan = model, plan
        self.num_steps_done = 0
        self._loss_fn, self._communicator = loss_fn, communicator
        self._optim = plan.config.optim
        optimizer = OPTIMIZERS[self._optim.name]
        make_step = STEPS[plan.config.graph.mode].prepare(model, loss_fn, plan, communicator, example=example, say=say)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.state = ShardedState(parameters, plan, communicator, optimizer)
        self._step = make_step(self.state, optimizer)
        self._savers: dict[str, Saver] = {}

    def step(self, micro_batches: Sequence[B], *, stop: bool = False) -> StepResult:
        """One update from this rank's micro-batches.

        Args:
            stop: this rank wants to stop after this step; every rank learns it.

        Raises:
            NumbersError: loss or gradient norm is not finite; nothing was updated.
            DataError: the step has no valid token.
            LostRankError: another rank is gone.
        """
        step = self.num_steps_done
        lr = learning_rate(self._optim, step, self.plan.config.run.steps)
        batches = [batch.to(self._communicator.device) for batch in micro_batches]
        loss_sum, tokens, stops, squares = self._step(batches, lr=lr, step=step + 1, stop=stop)
        if not tokens:
            raise DataError(f"step {step}: no valid token on any rank; check the corpus and its loss mask")
        loss, norm = loss_sum / tokens, sqrt(squares) / tokens
        if not (isfinite(loss) and isfinite(norm)):
            raise NumbersError(
                f"step {step}: loss is {loss}, gradient norm {norm}; the update was not applied; "
                "lower optim.lr, raise optim.warmup_ratio or lower optim.clip"
            )
        self.num_steps_done += 1
        return StepResult(loss, norm, lr, int(tokens), stops > 0)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[B]) -> tuple[float, int]:
        """Sum of the loss in nats and number of valid tokens, over the batches of all ranks."""
        totals = torch.zeros(2, dtype=torch.float64, device=self._communicator.device)
        with self.whole_parameters():
            for batch in batches:
                loss, count = self._loss_fn(self.model, batch.to(self._communicator.device))
                totals[0] += loss
                totals[1] += count
        loss_sum, tokens = self._communicator.sum(totals).tolist()
        return loss_sum, int(tokens)

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """Within the block the module's parameters are whole and up to date; every rank enters it."""
        with self.state.whole_parameters():
            yield

    def save(self, path: str, *, extra: Mapping[str, JsonValue] | None = None) -> None:
        """Publish the whole training state as `path`/step-N, of which the newest three are kept. Every rank calls it.

        Args:
            path: a folder that all ranks see, or an fsspec URL.
            extra: whatever goes with it; `load` gives it back.

        Raises:
            StorageError: it could not be published; what was there before still is.
        """
        if path not in self._savers:
            run_id = self._communicator.agree("run id", uuid4().hex)[0]
            view = view_of(self.state, self.plan, self._communicator.rank)
            storage = open_storage(path)
            self._savers[path] = Saver(storage, view, self._communicator, run_id=run_id, keep=KEPT_CHECKPOINTS)
        self._savers[path].save(self.num_steps_done, dict(extra or {}))

    def load(self, path: str) -> dict[str, JsonValue]:
        """Go on from the newest checkpoint in `path` that verifies, written by any plan. Every rank calls it.

        Returns:
            The `extra` it was saved with.

        Raises:
            CheckpointError: there is none that verifies; the engine's state may be half replaced.
        """
        manifest = self.load_newest(open_storage(path))
        if manifest is None:
            raise CheckpointError(f"{path} holds no checkpoint: a folder with step-N folders in it is needed")
        return manifest.extra

    def load_newest(
        self,
        storage: Storage,
        *,
        accept: Accept = lambda manifest: None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Manifest | None:
        """As `load`; None where there is no checkpoint at all. See checkpoint/load.py."""
        view = view_of(self.state, self.plan, self._communicator.rank)
        manifest = load_newest(storage, view, self._communicator, accept=accept, say=say)
        if manifest is not None:
            self.state.adopt_masters()
            self.num_steps_done = manifest.step
        return manifest

    def close(self) -> None:
        """Let go of the model and of the process groups, so that they can be destroyed; the parameters stay."""
        self._step.close()
        self._communicator.close()
