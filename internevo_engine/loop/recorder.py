"""loop: everything a run leaves behind, in one place: screen, log, metrics, validations, plot, final weights.

Rank 0 records; on the other ranks the same calls do nothing, so that the loop has no `if rank == 0`.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch

from internevo_engine.config.load import dump_config
from internevo_engine.config.schema import Config
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.loop.evaluate import Validation
from internevo_engine.loop.final import write_final
from internevo_engine.loop.fingerprint import FILE, Fingerprint, fingerprint
from internevo_engine.loop.log import Log, StepBar
from internevo_engine.loop.metrics import StepMetrics, as_line
from internevo_engine.loop.plots import draw_loss
from internevo_engine.loop.run_folder import RunFolder, folder_of
from internevo_engine.loop.sinks import Sink, jsonl, tensorboard
from internevo_engine.plan.plan import Plan, describe
from internevo_engine.runtime.sharded_state import Checksums


class Recorder:
    """Records on rank 0, silent elsewhere."""

    def __init__(self, config: Config, plan: Plan, *, rank: int, command: Sequence[str]) -> None:
        """Claim the run folder (rank 0).

        Raises:
            ConfigError, StorageError: the folder can't be used.
        """
        self.path = folder_of(config)
        self.steps_done = 0
        self._rank = rank
        self._log = Log(speaks=rank == 0)
        self._run = config.run
        self._folder: RunFolder | None = None
        self._step_sinks: list[Sink] = []
        self._valid_sinks: list[Sink] = []
        if rank == 0:
            self._open(config, plan, command)

    def _open(self, config: Config, plan: Plan, command: Sequence[str]) -> None:
        files = {
            "config.yaml": dump_config(config),
            "command.txt": " ".join(command) + "\n",
            "plan.txt": describe(config, plan) + "\n",
        }
        extra = [tensorboard()] if self._run.tensorboard else []
        self._folder = RunFolder(self.path, files, num_steps=self._run.steps)
        extra_sinks = [open_sink(self.path / "tb") for open_sink in extra]
        self._log.open_file(self.path / "log" / "rank0.log")
        self._step_sinks = [jsonl(self.path / "metrics.jsonl"), *extra_sinks]
        self._valid_sinks = [jsonl(self.path / "valid.jsonl"), *extra_sinks]
        if self._folder.moved_to:
            self.say(f"an unfinished or earlier run was here; it is now {self._folder.moved_to}; starting from step 0")

    def say(self, text: str) -> None:
        """A line for the screen and the log."""
        self._log.say(text)

    @contextmanager
    def progress(self) -> Iterator[StepBar]:
        with self._log.progress(self._run.steps) as bar:
            yield bar

    def step(self, metrics: StepMetrics, checksums: Checksums) -> None:
        """One update is done."""
        self.steps_done = metrics.step
        self._keep_fingerprint(fingerprint(metrics.step, metrics.loss, metrics.grad_norm, **asdict(checksums)))
        for sink in self._step_sinks:
            sink(metrics.step, asdict(metrics))
        if metrics.step % self._run.log_every == 0 or metrics.step in (1, self._run.steps):
            self.say(as_line(metrics, self._run.steps))

    def _keep_fingerprint(self, print_of_step: Fingerprint) -> None:
        if self._folder is not None:
            with (self.path / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(print_of_step)) + "\n")

    def validation(self, result: Validation) -> None:
        """Held-out text was read."""
        for sink in self._valid_sinks:
            sink(result.step, asdict(result))
        bits = "" if result.bits_per_byte is None else f"  {result.bits_per_byte:.4f} bits per byte"
        self.say(f"step {result.step}: held-out loss {result.loss:.4f}{bits}  ({result.tokens:,} tokens)")

    def write_final(self, model: torch.nn.Module, tokenizer: Tokenizer | None) -> None:
        """RUN/final: the weights as they are now."""
        if self._folder is not None:
            write_final(self.path, model, tokenizer)

    def draw(self) -> None:
        """RUN/loss.png from the records so far."""
        if self._folder is not None:
            draw_loss(self.path)

    def last_words(self, words: Callable[[], str]) -> None:
        """Say what `words` makes, which may cost a few seconds; kept in RUN/report.txt too."""
        if self._folder is not None:
            text = words()
            self._folder.write("report.txt", text + "\n")
            self.say(f"\n{text}")

    @contextmanager
    def state(self) -> Iterator[None]:
        """Keep RUN/run.json true, however the block ends."""
        try:
            yield
        except KeyboardInterrupt:
            self.set_state("interrupted")
            raise
        except BaseException:
            self.set_state("failed")
            self._keep_traceback()
            raise

    def _keep_traceback(self) -> None:
        """The whole story of a failure, of any rank, where the screen shows one line."""
        folder = self.path / "log"
        if folder.is_dir():
            with (folder / f"rank{self._rank}.log").open("a", encoding="utf-8") as file:
                file.write(traceback.format_exc())

    def set_state(self, state: str) -> None:
        if self._folder is not None:
            self._folder.set_state(state, self.steps_done)
