"""checkpoint: every rank writes what it owns, rank 0 publishes when all have written. From a ShardedView to step-N.

    every rank, at once      snapshot: the only thing that training waits for
    every rank, in a thread  write the file, sync it, read it back, post its digests
    rank 0, in its thread    when all have posted: manifest, rename, sync; then drop what is beyond `keep`
    every rank, any step     hear the outcome

A save that fails costs a message; the run goes on and saves again. After MAX_FAILURES in a row it is over.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from pydantic import BaseModel, JsonValue

from internevo_engine.checkpoint.manifest import FILE, FORMAT_VERSION, FileEntry, Manifest, ParamEntry, encode
from internevo_engine.checkpoint.shard_file import CHUNK_BYTES, read_file, write_file
from internevo_engine.checkpoint.snapshot import Snapshot
from internevo_engine.checkpoint.storage import Folder, Storage
from internevo_engine.checkpoint.view import ShardedView
from internevo_engine.errors import CheckpointError, StorageError
from internevo_engine.runtime.communicator import Communicator

MAX_FAILURES = 3
_POLL_S = 0.02


class _Report(BaseModel):
    """What a rank posts when it has written."""

    file: FileEntry | None = None
    """None: it owns nothing, or another replica writes it."""
    error: str = ""


class _Outcome(BaseModel):
    """What rank 0 posts to all."""

    is_published: bool
    trouble: str = ""


@dataclass(frozen=True)
class _Job:
    step: int
    attempt: str
    extra: dict[str, JsonValue]


class Saver:
    """Saves one training state into one storage. All ranks make the same calls in the same order."""

    def __init__(
        self,
        storage: Storage,
        view: ShardedView,
        communicator: Communicator,
        *,
        run_id: str | None = None,
        keep: int = 3,
        rate_mb: float | None = None,
        published_step: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Allocate the host buffer, and make sure that the storage can be written.

        Args:
            run_id: who trains; None: a new one.
            keep: checkpoints kept, the newest.
            rate_mb: most megabytes a second that this rank writes while training goes on.
            published_step: the checkpoint that the state was loaded from; it is not saved again.
            say: hears of failures and waits.

        Raises:
            StorageError: the storage can't be written.
        """
        self._storage, self._view, self._communicator = storage, view, communicator
        self._keep, self._rate_mb, self._say = keep, rate_mb, say
        if communicator.rank == 0:
            storage.prepare()
        number = communicator.agree(f"attempt at {storage.url}", uuid4().hex)[0]
        self._prefix, self._run_id = number[:8], run_id or number
        self._snapshot = Snapshot(view) if view.is_writer else None
        self._num_saves, self._num_failures = 0, 0
        self._published_step = published_step
        self._pending: _Job | None = None
        self._trouble = ""
        self._hurry = threading.Event()

    @property
    def has_failed(self) -> bool:
        """No save has worked for long: time to stop. Ranks may learn it at different steps."""
        return self._num_failures >= MAX_FAILURES

    def save(self, step: int, extra: dict[str, JsonValue], *, background: bool = False) -> None:
        """Save the state after `step` updates, once; an earlier save that is still under way is waited for.

        Raises:
            StorageError: not in the background: the checkpoint was not published.
            LostRankError: the store is gone.
        """
        self.wait()
        if step == self._published_step:
            return
        if self._snapshot is not None:
            self._snapshot.take()
        self._num_saves += 1
        job = self._pending = _Job(step, f"{self._prefix}-{self._num_saves}", extra)
        self._hurry.clear() if background else self._hurry.set()
        threading.Thread(target=self._work, args=(job,), name="checkpoint", daemon=True).start()
        if not background:
            self.wait()
            if self._published_step != step:
                raise StorageError(f"the checkpoint of step {step} {self._trouble}")

    def wait(self) -> None:
        """Until the save under way has an outcome; it doesn't keep to its rate any longer."""
        self._hurry.set()
        while self._pending is not None:
            self.poll()
            time.sleep(_POLL_S if self._pending else 0)

    def poll(self) -> None:
        """Hear the outcome of the save under way, if there is one by now."""
        job = self._pending
        text = self._communicator.peek(f"{job.attempt} outcome") if job else None
        if job is None or text is None:
            return
        self._pending = None
        outcome = _Outcome.model_validate_json(text)
        if outcome.is_published:
            self._num_failures, self._published_step = 0, job.step
        else:
            self._num_failures += 1
        self._trouble = outcome.trouble
        if outcome.trouble:
            self._say(f"the checkpoint of step {job.step} {outcome.trouble}")

    def _work(self, job: _Job) -> None:
        """The thread. Whatever goes wrong in it is posted, or the other ranks would wait for ever."""
        try:
            report = _Report(file=self._write(job))
        except Exception as error:
            report = _Report(error=f"rank {self._communicator.rank}: {_text(error)}")
        self._communicator.post(f"{job.attempt} rank {self._communicator.rank}", report.model_dump_json())
        if self._communicator.rank == 0:
            self._communicator.post(f"{job.attempt} outcome", self._conclude(job).model_dump_json())

    def _write(self, job: _Job) -> FileEntry | None:
        if self._snapshot is None or not self._view.stretches:
            return None
        folder = self._storage.draft(job.step, job.attempt)
        name = f"rank-{self._communicator.rank:05}.safetensors"
        entry = write_file(folder, name, self._view, self._snapshot.data, chunk_bytes=CHUNK_BYTES, pace=self._pace())
        read_file(folder, entry, len(self._view.states), None, chunk_bytes=CHUNK_BYTES)
        return entry

    def _pace(self) -> Callable[[int], None]:
        """Sleeps as long as it takes to keep to the rate, but not while someone waits."""
        started, num_bytes = time.monotonic(), 0

        def pace(count: int) -> None:
            nonlocal num_bytes
            num_bytes += count
            if self._rate_mb is not None:
                self._hurry.wait(max(0.0, started + num_bytes / (self._rate_mb * 1e6) - time.monotonic()))

        return pace

    def _conclude(self, job: _Job) -> _Outcome:
        """Rank 0: publish or drop, when every rank has written or failed to."""
        reports = [self._report(f"{job.attempt} rank {rank}") for rank in range(self._communicator.world)]
        error = next((report.error for report in reports if report.error), "")
        try:
            if not error:
                self._publish(job, [report.file for report in reports if report.file])
        except Exception as failure:
            error = _text(failure)
        trouble = self._tidy(job, is_published=not error)
        return _Outcome(is_published=not error, trouble=f"could not be published: {error}" if error else trouble)

    def _tidy(self, job: _Job, *, is_published: bool) -> str:
        """Drop a failed draft, or what is beyond `keep`: the one just published was read back, so it verifies."""
        try:
            if not is_published:
                self._storage.discard(job.step, job.attempt)
                return ""
            for step in self._storage.steps()[: -self._keep]:
                self._storage.remove(step)
        except Exception as failure:
            return f"is published, but an older one could not be deleted: {_text(failure)}"
        return ""

    def _report(self, name: str) -> _Report:
        while (text := self._communicator.peek(name)) is None:
            time.sleep(_POLL_S)
        self._communicator.withdraw(name)
        return _Report.model_validate_json(text)

    def _publish(self, job: _Job, files: list[FileEntry]) -> None:
        manifest = Manifest(
            version=FORMAT_VERSION,
            run_id=self._run_id,
            step=job.step,
            plan=self._view.plan,
            states=self._view.states,
            params=tuple(ParamEntry(name=param.name, shape=param.shape) for param in self._view.params),
            chunk_bytes=CHUNK_BYTES,
            files=tuple(files),
            extra=job.extra,
        )
        folder = self._storage.draft(job.step, job.attempt)
        _check_present(folder, files)
        with folder.create(FILE) as write:
            write(memoryview(encode(manifest)))
        self._storage.publish(job.step, job.attempt)


def _check_present(folder: Folder, files: list[FileEntry]) -> None:
    """A rank on a host with a folder of its own has written elsewhere."""
    found = folder.sizes()
    for file in files:
        if found.get(file.name) != file.size:
            raise CheckpointError(
                f"{folder.name}/{file.name}: {found.get(file.name, 'no')} bytes are there for rank 0, {file.size} were "
                "written: checkpoint.dir must be a folder that all hosts share"
            )


def _text(error: Exception) -> str:
    """One line."""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    return (text or type(error).__name__).splitlines()[0]
