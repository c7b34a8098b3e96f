"""Which documents a corpus has, and what is said of one that can't be used."""

import json
import sys
import sysconfig
from pathlib import Path

import pytest

from internevo_engine.data.corpora import TextCorpus
from internevo_engine.errors import DataError


def texts(name: Path | str, text_key: str = "text") -> list[str]:
    return [document.text for document in TextCorpus.open(str(name), text_key).documents()]


def error_of(name: Path | str, text_key: str = "text") -> str:
    with pytest.raises(DataError) as caught:
        texts(name, text_key)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_gives_its_text_files_recursively_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("second")
    (tmp_path / "README").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": "fourth"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "empty.txt").write_text("")
    assert texts(tmp_path) == ["first", "second", "third", "fourth"]


def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    text = "\ufeffone\r\ntwo\rthree\t \n\n\u2028four"
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    assert texts(tmp_path / "a.txt") == texts(tmp_path / "a.jsonl") == [text]


def test_jsonl_documents_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n\n{"body": "y"}\n')
    assert [document.name for document in TextCorpus.open(str(path), "body").documents()] == [f"{path}:1", f"{path}:3"]


def test_stdlib_splits_into_training_and_held_out_part() -> None:
    root = Path(sysconfig.get_path("stdlib"))
    train, held_out = (
        {path.relative_to(root) for path in TextCorpus.open(name).files}
        for name in ("python-stdlib", "python-stdlib-heldout")
    )
    assert {path.parts[0] for path in held_out} == {"json", "email", "http"}
    assert {Path("email/mime/text.py"), Path("json/decoder.py")} <= held_out
    assert {Path("ast.py"), Path("asyncio/tasks.py")} <= train
    assert not train & held_out
    assert not {"test", "tests", "idle_test", "site-packages", "dist-packages"} & {
        part for path in train for part in path.parts
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[1]", ":2: list instead of an object"),
        ("{oops", ":2: not JSON"),
        ('{"body": "x", "id": 1}', ":2: no key 'text' among ['body', 'id']; set data.text_key"),
        ('{"text": 7}', ":2: 'text' is int, not text"),
        ('{"text": "\\ud800"}', ":2: 'text' holds half of a surrogate pair"),
    ],
)
def test_bad_jsonl_line_is_named_with_its_number(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    assert error_of(tmp_path).startswith(f"{tmp_path / 'a.jsonl'}{expected}")


def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "x"}\n{"text": "\xe9"}\n')
    assert "a.txt: byte 3 (0xe9) is not UTF-8" in error_of(tmp_path / "a.txt")
    assert "b.jsonl:2: byte 10 (0xe9) is not UTF-8" in error_of(tmp_path / "b.jsonl")


def test_missing_and_empty_corpora_are_refused(tmp_path: Path) -> None:
    assert "'nowhere' does not exist" in error_of("nowhere")
    assert "python-stdlib" in error_of("nowhere")
    assert "is empty: 0 text files" in error_of(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    assert "is empty: 1 files without text" in error_of(tmp_path)


def test_fingerprint_follows_every_edit_and_the_text_key(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = TextCorpus.open(str(tmp_path)).fingerprint
    assert TextCorpus.open(str(tmp_path)).fingerprint == before
    assert TextCorpus.open(str(tmp_path), "body").fingerprint != before
    path.write_text("two")
    assert TextCorpus.open(str(tmp_path)).fingerprint != before


def test_parquet_rows_are_documents_like_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra [parquet] is not installed")
    from pyarrow import parquet

    table = pyarrow.table({"text": [f"row {n}" for n in range(2000)], "id": list(range(2000))})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert texts(tmp_path) == [f"row {n}" for n in range(2000)]
    assert "a.parquet:1: no key 'body' among ['id', 'text']" in error_of(tmp_path, "body")
    raw = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(raw[: len(raw) // 2])
    assert "a.parquet can't be read as parquet" in error_of(tmp_path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "parquet needs pyarrow: pip install 'internevo-engine[parquet]'" in error_of(tmp_path)


@pytest.mark.parametrize("piece_bytes", [1, 7, 40, 1000])
def test_pieces_of_a_jsonl_file_hold_every_line_once(tmp_path: Path, piece_bytes: int) -> None:
    lines = [json.dumps({"text": "é" * n}) for n in range(1, 30)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.txt").write_text("one")
    pieces = list(TextCorpus.open(str(tmp_path)).pieces(piece_bytes))
    assert sum(piece.num_bytes for piece in pieces) == sum(path.stat().st_size for path in tmp_path.iterdir())
    found = [document.text for piece in pieces for document in piece.documents()]
    assert found == [*("é" * n for n in range(1, 30)), "one"]
