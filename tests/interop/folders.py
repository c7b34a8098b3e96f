"""Small models in engine folders, and a tokenizer of 600 pieces: what the tests of this room convert."""

import functools
import io
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from internevo_engine.config.schema import ModelConfig
from internevo_engine.data.tokenizers import TRAINER_SETTINGS
from internevo_engine.interop.engine_folder import load_weights, open_engine, write_config
from internevo_engine.interop.folder import write_weights
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.initialize import build

VOCAB, SEQ_LEN = 640, 32
CPU = torch.device("cpu")
CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏，闰余成岁律吕调阳。我们用中文写一段文字，来训练分词器。"  # noqa: RUF001


def tiny(family: str, **keys: object) -> ModelConfig:
    shape = {"vocab": VOCAB, "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "init_std": 0.1}
    return ModelConfig.model_validate({"family": family, **shape, **keys})


def decoder_of(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """Random weights, in which norms and biases are not the constants they start as."""
    decoder = build(model, SEQ_LEN, dtype, CPU, seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return decoder


def weights_of(decoder: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() for name, parameter in decoder.named_parameters()}


def write_engine(folder: Path, model: ModelConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """An engine folder with random weights; returns the model that it holds."""
    decoder = decoder_of(model, dtype)
    folder.mkdir(parents=True)
    write_weights(folder, weights_of(decoder).items())
    write_config(folder, model, SEQ_LEN)
    write_tokenizer(folder / "tokenizer.model")
    return decoder


def read_engine(folder: Path, seq_len: int = SEQ_LEN) -> Decoder:
    opened = open_engine(folder)
    decoder = build(opened.config.model, seq_len, torch.float32, CPU, seed=0)
    with opened.tensors:
        load_weights(decoder, opened.tensors)
    return decoder


@functools.cache
def train(vocab: int = 600, **settings: object) -> bytes:
    """A BPE of English, code and Chinese, with byte fallback."""
    model = io.BytesIO()
    lines = Path(functools.__file__).read_text().splitlines() + [CHINESE[i : i + 20] for i in range(40)] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=vocab, **{**TRAINER_SETTINGS, **settings}
    )
    return model.getvalue()


def write_tokenizer(path: Path) -> Path:
    path.write_bytes(train())
    return path


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    """Of one sequence."""
    with torch.no_grad():
        return decoder(tokens, torch.arange(len(tokens)), torch.tensor([0, len(tokens)], dtype=torch.int32))
