"""Small states in many small chunks, and no long waits."""

import pytest

from internevo_engine.checkpoint import save


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(save, "CHUNK_BYTES", 128)
    monkeypatch.setattr(save, "_POLL_S", 0.001)
