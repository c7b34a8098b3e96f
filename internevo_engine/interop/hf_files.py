"""interop: the small files of a Hugging Face folder: tokenizer, chat template, generation settings, model card.

Serves export_hf.py. An engine folder that came from Hugging Face carries its tokenizer files along and gives them back;
any other has a sentencepiece model, from which they are built.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from internevo_engine.data.tokenizers import load_tokenizer
from internevo_engine.errors import DataError
from internevo_engine.interop.folder import write_json
from internevo_engine.interop.hf_tokenizer import piece_names, tokenizer_json
from internevo_engine.interop.sentencepiece_file import read_pieces
from internevo_engine.interop.tensors import read_json
from internevo_engine.models.families import Architecture
from internevo_engine.units import format_count

CARRIED = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
SETTINGS = ("tokenizer_config.json", "generation_config.json")
SENTENCEPIECE = "tokenizer.model"
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""Reads tokenizer.json and nothing else, in every version of transformers."""

CHATML = """\
{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] \
+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
INTERNLM_CHAT = """\
{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
{{ '<|User|>:' + message['content'] + '<eoh>\\n' }}{% elif message['role'] == 'assistant' %}\
{{ '<|Bot|>:' + message['content'] + '<eoa>\\n' }}{% else %}{{ message['content'] + '\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '<|Bot|>:' }}{% endif %}"""
CHAT: Mapping[str, tuple[str, str]] = {
    "internlm": (INTERNLM_CHAT, "<eoa>"),
    "internlm2": (CHATML, "<|im_end|>"),
    "internlm3": (CHATML, "<|im_end|>"),
    "llama": (CHATML, "<|im_end|>"),
}
"""By family: the chat template, and the piece that ends an answer, where the tokenizer has it."""


def carry(source: Path, target: Path, vocab: int) -> None:
    """Copy the tokenizer files of a folder; settings lose what would make transformers run code from the folder.

    Raises:
        DataError: a tokenizer has ids that the embedding, `vocab` rows, doesn't have.
    """
    if (source / SENTENCEPIECE).is_file():
        load_tokenizer(source / SENTENCEPIECE, vocab)
        shutil.copyfile(source / SENTENCEPIECE, target / SENTENCEPIECE)
    if not (source / "tokenizer.json").is_file():
        return
    _check_ids(source / "tokenizer.json", vocab)
    for name in CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for name in SETTINGS:
        if (source / name).is_file():
            write_json(target / name, _without_code(read_json(source / name)))


def _without_code(settings: Mapping[str, object]) -> Mapping[str, object]:
    if "auto_map" not in settings:
        return settings
    kept = {key: value for key, value in settings.items() if key != "auto_map"}
    return {**kept, "tokenizer_class": TOKENIZER_CLASS}


def _check_ids(path: Path, vocab: int) -> None:
    match read_json(path):
        case {"model": {"vocab": dict() as pieces}, "added_tokens": list() as added}:
            ids = [*pieces.values(), *(token.get("id") for token in added if isinstance(token, dict))]
        case _:
            raise DataError(f"{path} has no vocabulary by name; the engine reads BPE tokenizers")
    largest = max((number for number in ids if isinstance(number, int)), default=0)
    if largest >= vocab:
        raise DataError(
            f"{path} has token id {largest}, but the embedding has {vocab} rows; the two don't belong together"
        )


def build(model: Path, target: Path, family: str, arch: Architecture, max_len: int) -> tuple[int, int]:
    """Write tokenizer.json and what belongs to it from a sentencepiece model; returns the ids of bos and eos.

    Raises:
        DataError: see read_pieces and load_tokenizer.
    """
    tokenizer, pieces = load_tokenizer(model, arch.vocab), read_pieces(model)
    names, (template, end_of_answer) = piece_names(pieces), CHAT[family]
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    write_json(target / "tokenizer.json", tokenizer_json(pieces, bos))
    settings = {
        "tokenizer_class": TOKENIZER_CLASS,
        "bos_token": names[bos],
        "eos_token": names[eos],
        "pad_token": names[eos],
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    write_json(target / "tokenizer_config.json", settings)
    ends = [eos, *(number for number, name in enumerate(names) if name == end_of_answer)]
    write_json(target / "generation_config.json", {"bos_token_id": bos, "eos_token_id": ends, "pad_token_id": eos})
    shutil.copyfile(model, target / SENTENCEPIECE)
    return bos, eos


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [internevo_engine]
---

# {name}

A {family} language model of {size} parameters, trained with internevo_engine and exported for transformers:
{layers} layers, hidden size {hidden}, {heads} query and {kv_heads} key/value heads, {vocab} tokens, context {max_len}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
```

Say here what it was trained on, how it was evaluated, and under which licence it may be used.
"""


def write_card(target: Path, name: str, family: str, arch: Architecture, num_params: int, max_len: int) -> None:
    """README.md, as the hub shows it."""
    shape = {key: getattr(arch, key) for key in ("layers", "hidden", "heads", "kv_heads", "vocab")}
    text = CARD.format(name=name, family=family, size=format_count(num_params), max_len=max_len, **shape)
    (target / "README.md").write_text(text, encoding="utf-8")
