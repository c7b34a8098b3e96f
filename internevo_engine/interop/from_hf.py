"""interop: a Hugging Face folder as a Source: config.json, safetensors, tokenizer files. Nothing in it is executed."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path

from internevo_engine.interop.folder import write_json
from internevo_engine.interop.hf_config import read_config
from internevo_engine.interop.hf_files import carry
from internevo_engine.interop.sources import Hints, Source
from internevo_engine.interop.tensors import open_folder, read_json


def open_hf(folder: Path, hints: Hints, scratch: Path, stack: ExitStack) -> Source:
    """Read config.json and the headers of the weights.

    Raises:
        DataError: see read_config and open_folder.
    """
    read = read_config(folder)
    tied_head = ("lm_head.weight", "output.weight") if read.model.tie_embeddings else ()
    return Source(
        folder,
        read.model,
        read.table,
        stack.enter_context(open_folder(folder)),
        read.max_len,
        partial(_write_tokenizer, folder, read.model.vocab),
        ignored=("rotary_emb.inv_freq", *tied_head),
    )


def _write_tokenizer(folder: Path, vocab: int, target: Path) -> None:
    carry(folder, target, vocab)
    if not (target / "generation_config.json").is_file():
        config = read_json(folder / "config.json")
        write_json(
            target / "generation_config.json", {key: config.get(key) for key in ("bos_token_id", "eos_token_id")}
        )
