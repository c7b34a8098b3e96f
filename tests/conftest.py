"""A run small enough for a test: a few documents, a tokenizer of 300 pieces, a model that trains in milliseconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CONFIG = """\
model: {{family: internlm2, vocab: 300, layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 64}}
data:
  train: {folder}/train
  valid: {folder}/valid
  tokenizer: train
  seq_len: 32
  micro_batch: 2
optim: {{lr: 1e-2, eta_min: 1e-3}}
graph: {{compile: eager}}
run: {{dir: {folder}/runs/tiny, steps: 6}}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=10, help="how many faults a campaign makes; see tests/campaigns")


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was measured on this machine before doesn't decide what is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@dataclass
class Tiny:
    """A folder with a corpus and a config."""

    folder: Path

    @property
    def config(self) -> str:
        return str(self.folder / "tiny.yaml")

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return make_tiny(tmp_path)


def make_tiny(tmp_path: Path) -> Tiny:
    for part, count in (("train", 20), ("valid", 3)):
        (tmp_path / part).mkdir()
        for number in range(count):
            words = [
                f"{verb} {number * k} apples and {k} pears\n" for k in range(number % 7 + 2) for verb in ("eat", "buy")
            ]
            (tmp_path / part / f"{number:02}.txt").write_text("".join(words))
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(folder=tmp_path))
    return Tiny(tmp_path)
