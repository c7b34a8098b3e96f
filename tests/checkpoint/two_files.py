"""What two ranks would publish, without starting them."""

from internevo_engine.checkpoint.manifest import FILE, FileEntry, Manifest, ParamEntry, encode
from internevo_engine.checkpoint.shard_file import write_file
from internevo_engine.checkpoint.snapshot import Snapshot
from internevo_engine.checkpoint.storage import Storage
from tests.checkpoint.small import PARAMS, STATES, small_view

CHUNK_BYTES = 128


def publish_two_files(storage: Storage, step: int) -> None:
    """Step n's state is that of seed n, half of each parameter in each file."""
    storage.prepare()
    folder = storage.draft(step, "x")
    files: list[FileEntry] = []
    for rank in range(2):
        view = small_view(step, rank, 2)
        snapshot = Snapshot(view)
        snapshot.take()
        name = f"rank-{rank:05}.safetensors"
        pace = lambda count: None  # noqa: E731
        files.append(write_file(folder, name, view, snapshot.data, chunk_bytes=CHUNK_BYTES, pace=pace))
    manifest = Manifest(
        version=1,
        run_id="run",
        step=step,
        plan=small_view(step, 0, 2).plan,
        states=STATES,
        params=tuple(ParamEntry(name=param.name, shape=param.shape) for param in PARAMS),
        chunk_bytes=CHUNK_BYTES,
        files=tuple(files),
        extra={"step": step},
    )
    with folder.create(FILE) as write:
        write(memoryview(encode(manifest)))
    storage.publish(step, "x")
