"""InternEvo's folders are read as InternEvo reads them, and written so that it can."""

import json
from pathlib import Path

import numpy as np
import pytest

from internevo_engine.data.formats import TokenFile, write_tokens
from internevo_engine.data.internevo import META, find_types, read_meta, write_internevo
from internevo_engine.data.packing import IGNORED, PackedCorpus
from internevo_engine.data.sources import ForeignTokens, open_entry
from internevo_engine.errors import DataError

SAMPLES = [[1, -5, -6, 7, 0, 2], [1, 9, 2], [-1, 8]]


def write(path: Path, samples: list[list[int]], dtype: type = np.int64) -> Path:
    """As InternEvo's tools do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"tokens": sample}).encode() + b"\n" for sample in samples]
    path.write_bytes(b"".join(lines))
    offsets = np.cumsum([0, *map(len, lines)])[:-1]
    with Path(f"{path}{META}").open("wb") as file:
        np.save(file, np.array([offsets, list(map(len, samples))], dtype).T)
    return path


def documents(path: Path) -> list[list[int]]:
    return [
        document.tolist()
        for source in open_entry(str(path))
        if isinstance(source, ForeignTokens)
        for piece in source.pieces(1)
        for document, _ in piece.encoded(None, 1)
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_negative_ids_and_id_0_are_read_but_not_counted(tmp_path: Path, dtype: type) -> None:
    path = write(tmp_path / "a.bin", SAMPLES, dtype)
    assert documents(path) == [[1, ~5, ~6, 7, ~0, 2], [1, 9, 2], [~1, 8]]


def test_labels_are_those_that_internevo_makes(tmp_path: Path) -> None:
    """The label of a position is the next id of the sample; none where that isn't positive, and none at the end."""
    (document,) = documents(write(tmp_path / "a.bin", SAMPLES[:1]))
    with write_tokens(tmp_path / "t", None, source="test", masked=True) as writer:
        writer.add(np.array(document), 0)
    file = TokenFile.open(tmp_path / "t", 10)
    (pack,) = PackedCorpus([file], seq_len=8, micro_batch=1, seed=0).evaluation_packs()
    sample = SAMPLES[0]
    assert pack.tokens[:5].tolist() == [abs(token) for token in sample][:5]
    assert pack.labels[:5].tolist() == [token if token > 0 else IGNORED for token in sample[1:]]


def test_type_is_the_first_folder_below(tmp_path: Path) -> None:
    for name in ("en/deep/x.bin", "en/y.bin", "cn/x.bin", "code.bin"):
        write(tmp_path / name, SAMPLES)
    assert {kind: [file.name for file in files] for kind, files in find_types(tmp_path).items()} == {
        "cn": ["x.bin"],
        "code": ["code.bin"],
        "en": ["x.bin", "y.bin"],
    }
    assert [source.type for source in open_entry(str(tmp_path))] == ["cn", "code", "en"]


def test_int32_offsets_that_wrapped_past_2_gib_are_unwrapped(tmp_path: Path) -> None:
    """The meta of a sparse file of 5 GB, of which only the size is looked at."""
    path = tmp_path / "a.bin"
    begins = np.arange(6) * 1_000_000_007
    with path.open("wb") as file:
        file.truncate(begins[-1])
    with Path(f"{path}{META}").open("wb") as file:
        np.save(file, np.array([begins[:5].astype(np.int32), [9] * 5], np.int32).T)
    assert read_meta(path)[0].tolist() == begins.tolist()


def test_what_we_write_is_what_internevo_reads(tmp_path: Path) -> None:
    write_internevo(tmp_path / "a.bin", [np.array([1, ~5, 7, ~0, 2]), np.array([3])])
    meta = np.load(tmp_path / f"a.bin{META}")
    assert (meta.dtype, meta.shape) == (np.int64, (2, 2))
    with (tmp_path / "a.bin").open("rb") as file:
        for (offset, count), tokens in zip(meta.tolist(), ([1, -5, 7, 0, 2], [3]), strict=True):
            file.seek(offset)
            assert json.loads(file.readline()) == {"tokens": tokens}
            assert count == len(tokens)
    assert documents(tmp_path / "a.bin") == [[1, ~5, 7, ~0, 2], [3]]


def test_samples_without_their_meta_are_not_taken_for_text(tmp_path: Path) -> None:
    write(tmp_path / "en" / "a.bin", SAMPLES)
    Path(f"{tmp_path / 'en' / 'a.bin'}{META}").unlink()
    with pytest.raises(DataError, match=r"a\.bin holds samples of tokens, but a\.bin\.meta is not beside it"):
        open_entry(str(tmp_path))
