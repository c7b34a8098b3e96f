"""tokenizer.json gives what sentencepiece gives, token for token and character for character."""

import contextlib
import functools
import json
import random
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer

from internevo_engine.errors import DataError
from internevo_engine.interop.hf_tokenizer import INTERNLM2_NAMES, piece_names, tokenizer_json
from internevo_engine.interop.sentencepiece_file import CONTROL, NORMAL, Piece, Pieces, read_pieces
from tests.interop.folders import CHINESE, train

TEXTS = [
    "",
    " ",
    "  two spaces,  twice ",
    "\n\n\ttabs\r\n",
    "a plain sentence.",
    CHINESE,
    CHINESE[3:9] + " mixed " + CHINESE[:2],
    "def f(x):\n    return x ** 2  # code\n",
    "emoji 😀, accents é ñ, controls \0\1\x7f",
    "▁ itself ▁▁",
    "literal <0x0A>",
]


def samples() -> list[str]:
    source, draw = Path(functools.__file__).read_text(), random.Random(0)
    cuts = [draw.randrange(len(source)) for _ in range(100)]
    random_bytes = [bytes(draw.randrange(256) for _ in range(40)).decode("utf-8", "replace") for _ in range(100)]
    return [*TEXTS, *(source[cut : cut + 120] for cut in cuts), *random_bytes]


@pytest.mark.parametrize("adds_prefix", [False, True])
@pytest.mark.parametrize("whitespace_pieces", [False, True])
def test_every_text_has_the_same_tokens_in_both(tmp_path: Path, adds_prefix: bool, whitespace_pieces: bool) -> None:
    raw = train(add_dummy_prefix=adds_prefix, allow_whitespace_only_pieces=whitespace_pieces)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.load_from_serialized_proto(raw)
    found = read_pieces(tmp_path / "tokenizer.model")
    ours = Tokenizer.from_str(json.dumps(tokenizer_json(found, theirs.bos_id())))
    for text in samples():
        tokens = theirs.encode(text)
        assert ours.encode(text, add_special_tokens=False).ids == tokens, text
        assert ours.decode(tokens) == theirs.decode(tokens), text
        assert ours.encode(text).ids == [theirs.bos_id(), *tokens]


def test_user_defined_pieces_are_found_before_anything_is_merged(tmp_path: Path) -> None:
    raw = train(user_defined_symbols="<eoh>,<|im_start|>")
    (tmp_path / "tokenizer.model").write_bytes(raw)
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.load_from_serialized_proto(raw)
    ours = Tokenizer.from_str(json.dumps(tokenizer_json(read_pieces(tmp_path / "tokenizer.model"), 1)))
    for text in ("<|im_start|>user\nhello<eoh> there", "a<eoh>", "<eoh><eoh> x"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


def test_internlm2_s_unnamed_pieces_get_the_names_they_are_used_under() -> None:
    unnamed = [Piece(f"[UNUSED_TOKEN_{number}]", 0.0, CONTROL) for number in range(92544)]
    names = piece_names(Pieces(tuple(unnamed), byte_fallback=True, adds_prefix=False))
    assert (names[92543], names[92542], names[92537]) == ("<|im_start|>", "<|im_end|>", "[UNUSED_TOKEN_92537]")
    others = piece_names(Pieces(tuple(unnamed[:-1]), byte_fallback=True, adds_prefix=False))
    assert not {*INTERNLM2_NAMES.values()} & {*others}


def test_the_file_is_read_as_sentencepiece_reads_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    pieces = read_pieces(tmp_path / "tokenizer.model").pieces
    assert [piece.text for piece in pieces] == [theirs.id_to_piece(i) for i in range(600)]
    assert [piece.score for piece in pieces] == [theirs.get_score(i) for i in range(600)]
    assert [piece.kind == NORMAL for piece in pieces] == [
        not (theirs.is_control(i) or theirs.is_byte(i) or theirs.is_unknown(i)) for i in range(600)
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_type": "unigram"}, "not a BPE model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes text"),
        ({"remove_extra_whitespaces": True}, "removes spaces"),
    ],
)
def test_what_tokenizer_json_can_not_repeat_exactly_is_refused(tmp_path: Path, settings: dict, said: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train(**settings))
    with pytest.raises(DataError, match=said):
        read_pieces(tmp_path / "tokenizer.model")


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_model_is_refused_or_read_but_never_crashes(tmp_path: Path, seed: int) -> None:
    raw, draw = bytearray(train()), random.Random(seed)
    raw = raw[: draw.randrange(len(raw))] if seed % 2 else raw
    raw[draw.randrange(len(raw))] ^= 0xFF
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with contextlib.suppress(DataError):
        read_pieces(tmp_path / "tokenizer.model")
