"""loop: everything a run leaves behind, in one place: screen, log, metrics, validations, plot, final weights.

Rank 0 records; on the other ranks the same calls do nothing, so that the loop has no `if rank == 0`.
"""

import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from internevo_engine.config.load import dump_config
from internevo_engine.config.schema import Config
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.faults import ARMED
from internevo_engine.interop.adapters import Base
from internevo_engine.loop.evaluate import Score, Validation
from internevo_engine.loop.final import write_final
from internevo_engine.loop.fingerprint import FILE, Fingerprint, fingerprint
from internevo_engine.loop.log import Log, StepBar
from internevo_engine.loop.metrics import StepMetrics, as_line
from internevo_engine.loop.numbers import FILE as SKIPPED
from internevo_engine.loop.numbers import Skip
from internevo_engine.loop.plots import draw_loss
from internevo_engine.loop.run_folder import RunFolder, environment, folder_of, read_jsonl
from internevo_engine.loop.sinks import Sink, jsonl, tensorboard
from internevo_engine.plan.plan import Plan, describe
from internevo_engine.program import Program
from internevo_engine.runtime.sharded_state import Checksums


class Recorder:
    """Records on rank 0, silent elsewhere."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        *,
        rank: int,
        command: Sequence[str],
        goes_on: bool = False,
        job: str = "",
    ) -> None:
        """Claim the run folder (rank 0).

        Args:
            job: see RunFolder.
            goes_on: there is a checkpoint to go on from, so the folder stays as it is until `go_on_from`.

        Raises:
            ConfigError, StorageError: the folder can't be used.
        """
        self.path = folder_of(config)
        self.goes_on = goes_on
        self.steps_done = 0
        self._rank, self._job = rank, job
        self._marks: dict[str, bool] = {}
        self._log = Log(speaks=rank == 0)
        self._run = config.run
        self._folder: RunFolder | None = None
        self._step_sinks: list[Sink] = []
        self._valid_sinks: list[Sink] = []
        self._files = {
            "config.yaml": dump_config(config),
            "command.txt": " ".join(command) + "\n",
            "plan.txt": describe(config, plan) + "\n",
            "environment.json": json.dumps(environment(), indent=2) + "\n",
        }
        if rank == 0:
            self._open()

    @property
    def run_id(self) -> str | None:
        """Who this run is; None where only its checkpoints know, and off rank 0."""
        return self._folder.run_id if self._folder else None

    @property
    def stop_file(self) -> Path | None:
        """Whoever makes it asks the run to stop; watched by rank 0."""
        return self.path / "STOP" if self._folder else None

    def _open(self) -> None:
        extra = [tensorboard()] if self._run.tensorboard else []
        self._folder = RunFolder(self.path, num_steps=self._run.steps, goes_on=self.goes_on, job=self._job)
        self.steps_done = self._folder.steps_done
        if not self.goes_on:
            self._folder.go_back_to(0)  # an earlier attempt may have come a few steps far
            self._describe(self._folder)
        extra_sinks = [open_sink(self.path / "tb") for open_sink in extra]
        self._log.open_file(self.path / "log" / "rank0.log")
        self._step_sinks = [jsonl(self.path / "metrics.jsonl"), *extra_sinks]
        self._valid_sinks = [jsonl(self.path / "valid.jsonl"), *extra_sinks]
        if self._folder.moved_to:
            self.say(f"an unfinished or earlier run was here; it is now {self._folder.moved_to}; starting from step 0")

    def _describe(self, folder: RunFolder) -> None:
        for name, text in self._files.items():
            folder.write(name, text)

    def go_on_from(self, step: int) -> None:
        """The checkpoint of `step` is loaded: records of later steps go, and the folder tells of this start."""
        self.steps_done = step
        if self._folder is not None:
            self._folder.go_back_to(step)
            self._folder.set_state("running", step)
            self._describe(self._folder)
        self.say(f"going on from the checkpoint of step {step}")

    def faults_armed(self, plan: str) -> str:
        """Every record says from now on that this run breaks on purpose.

        Returns:
            Where this rank logs what happened: beside the run folder, which may be moved aside at the next start.
        """
        self._marks = {"faults_armed": True}
        self.say(f"{ARMED}: {plan}")
        return str(self.path.with_name(f"{self.path.name}.rank{self._rank}.faults"))

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
            sink(metrics.step, asdict(metrics) | self._marks)
        if metrics.step % self._run.log_every == 0 or metrics.step in (1, self._run.steps):
            self.say(as_line(metrics, self._run.steps))

    def _keep_fingerprint(self, print_of_step: Fingerprint) -> None:
        if self._folder is not None:
            with (self.path / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(print_of_step)) + "\n")

    def keep_program(self, program: Program | None) -> None:
        """RUN/program.txt: what is executed in a step, instruction by instruction."""
        if self._folder is not None and program is not None:
            self._folder.write("program.txt", program.text)

    def skips(self) -> tuple[Skip, ...]:
        """The batches that were left out, as the run folder knows; none off rank 0."""
        records = read_jsonl(self.path / SKIPPED) if self._folder is not None else []
        return tuple(Skip.model_validate_json(json.dumps(record)) for record in records)

    def left_out(self, skips: Sequence[Skip]) -> None:
        """All batches that are left out, the last of them just now."""
        if self._folder is not None and skips:
            self._folder.write(SKIPPED, "".join(f"{skip.model_dump_json()}\n" for skip in skips))
            self.say(f"step {skips[-1].step}: {skips[-1].text}")

    def validation(self, result: Validation) -> None:
        """Held-out text was read."""
        for sink in self._valid_sinks:
            sink(result.step, result.record())
        self.say(f"step {result.step}: held-out {_as_text(result.overall)}")
        for kind, score in result.types.items() if len(result.types) > 1 else ():
            self.say(f"  {kind}: {_as_text(score)}")

    def write_final(self, model: torch.nn.Module, tokenizer: Tokenizer | None, base: Base | None) -> None:
        """RUN/final: the weights as they are now."""
        if self._folder is not None:
            write_final(self.path, model, tokenizer, base)

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

    def take_stop_file(self) -> None:
        """The request was heard."""
        if self.stop_file is not None:
            self.stop_file.unlink(missing_ok=True)

    def set_state(self, state: str) -> None:
        if self._folder is not None:
            self._folder.set_state(state, self.steps_done)


def _as_text(score: Score) -> str:
    bits = "" if score.bits_per_byte is None else f"  {score.bits_per_byte:.4f} bits per byte"
    return f"loss {score.loss:.4f}{bits}  accuracy {score.accuracy:.1%}  ({score.tokens:,} tokens)"
