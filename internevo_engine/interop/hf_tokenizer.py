"""interop: a sentencepiece model as Hugging Face's tokenizer.json, token for token the same.

Written by us: transformers' own conversion sorts merges by id and adds a space that InternLM's models don't have. Takes
Pieces, hands a dict to interop/hf_files.py.
"""

from collections.abc import Mapping, Sequence

from internevo_engine.interop.sentencepiece_file import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Pieces

SPACE = "\u2581"
"""sentencepiece's mark for a space."""
INTERNLM2_PIECES = 92544
INTERNLM2_NAMES: Mapping[int, str] = {
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}
"""What the last pieces of InternLM2's tokenizer, unnamed in its .model file, are used for."""


def tokenizer_json(model: Pieces, bos_id: int) -> dict[str, object]:
    """The content of tokenizer.json: BPE with merges by score, byte fallback, bos in front.

    Two things differ from sentencepiece. Text that spells a control piece, such as "<s>", becomes that piece. And where
    the model puts a space before every text, it is put after every user-defined piece too.
    """
    names = piece_names(model)
    prefix = [{"type": "Prepend", "prepend": SPACE}] if model.adds_prefix else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(model, names),
        "normalizer": _sequence(
            "normalizers", *prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        ),
        "pre_tokenizer": None,
        "post_processor": _bos_in_front(bos_id, names[bos_id]),
        "decoder": _sequence(
            "decoders",
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.adds_prefix else []),
        ),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(piece.text for piece in model.pieces if piece.kind == UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": model.byte_fallback,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": _merges(model),
        },
    }


def piece_names(model: Pieces) -> list[str]:
    """The pieces by id, as tokenizer.json calls them."""
    renamed = INTERNLM2_NAMES if len(model.pieces) == INTERNLM2_PIECES else {}
    return [renamed.get(number, piece.text) for number, piece in enumerate(model.pieces)]


def _merges(model: Pieces) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others; pieces of the highest score first, as sentencepiece merges."""
    ids = {piece.text: number for number, piece in enumerate(model.pieces) if piece.kind == NORMAL}
    found = list[tuple[float, int, int]]()
    for text, number in ids.items():
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        score = model.pieces[number].score
        found += [(-score, ids[left], ids[right]) for left, right in halves if left in ids and right in ids]
    return [(model.pieces[left].text, model.pieces[right].text) for _, left, right in sorted(found)]


def _added_tokens(model: Pieces, names: Sequence[str]) -> list[dict[str, object]]:
    """Pieces that are found in the text before anything is merged; special ones vanish when text is made of tokens."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    found = list[dict[str, object]]()
    for number, (piece, name) in enumerate(zip(model.pieces, names, strict=True)):
        is_special = piece.kind in (UNKNOWN, CONTROL) or name != piece.text
        if is_special or piece.kind == USER_DEFINED:
            found.append({"id": number, "content": name.replace(SPACE, " "), **plain, "special": is_special})
    return found


def _sequence(key: str, *parts: Mapping[str, object]) -> dict[str, object]:
    return {"type": "Sequence", key: parts}


def _bos_in_front(number: int, bos: str) -> dict[str, object]:
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    text, pair = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [token, text],
        "pair": [token, text, pair],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }
