"""loop: what a person sees. Plain lines everywhere; a progress bar below them where there is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Log:
    """Rank 0 speaks to the screen and to its file; the other ranks are silent."""

    def __init__(self, *, speaks: bool) -> None:
        self._console = Console(highlight=False, soft_wrap=True, markup=False)
        self._speaks = speaks
        self._file: Path | None = None
        self._early: list[str] = []

    def open_file(self, path: Path) -> None:
        """From now on lines are also appended to `path`; earlier ones are handed in."""
        self._file = path
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in self._early)

    def say(self, text: str) -> None:
        """One or more lines."""
        if not self._speaks:
            return
        self._console.print(text)
        sys.stdout.flush()
        if self._file is None:
            self._early.append(text)
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    @contextmanager
    def progress(self, num_steps: int) -> Iterator["StepBar"]:
        """A bar over the steps; nothing where the output is not a terminal."""
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        visible = self._speaks and self._console.is_terminal
        with Progress(*columns, console=self._console, disable=not visible, transient=True) as progress:
            yield StepBar(progress, num_steps)


class StepBar:
    """The moving part of the bar."""

    def __init__(self, progress: Progress, num_steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task("train", total=num_steps, status="")

    def show(self, step: int, *, loss: float, tgs: float) -> None:
        self._progress.update(self._task, completed=step, status=f"loss {loss:.3f}  {tgs:,.0f} tokens/s per rank")
