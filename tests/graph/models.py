"""Models, losses and batches that the graph tests capture."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from internevo_engine.config.schema import ModelConfig
from internevo_engine.data.packing import MicroBatch
from internevo_engine.models.attention import pad_pieces
from internevo_engine.models.decoder import Decoder
from internevo_engine.models.initialize import build
from internevo_engine.models.loss import IGNORED

SEQ_LEN, NUM_TOKENS, VOCAB = 24, 48, 97


def decoder_config(family: str = "internlm2", **keys: object) -> ModelConfig:
    shape = {"vocab": VOCAB, "layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "init_std": 0.1}
    return ModelConfig.model_validate({"family": family, **shape, **keys})


def decoder(family: str = "internlm2", dtype: torch.dtype = torch.float32, **keys: object) -> Decoder:
    return build(decoder_config(family, **keys), SEQ_LEN, dtype, torch.device("cpu"), seed=3)


def meta_decoder(model: ModelConfig, seq_len: int = SEQ_LEN) -> Decoder:
    with torch.device("meta"):
        return Decoder(model, seq_len)


def pack(lengths: tuple[int, ...] = (24, 24), seed: int = 0) -> MicroBatch:
    """Random tokens in pieces of these lengths; every fifth label doesn't count."""
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = (torch.randint(VOCAB, (NUM_TOKENS,), generator=generator) for _ in range(2))
    labels[::5] = IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return MicroBatch(tokens, labels, positions, pad_pieces(cu_seqlens, NUM_TOKENS + 1))


class Tied(nn.Module):
    """Embedding and head share a parameter; a frozen one and an unused one stand beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.scale = nn.Parameter(torch.full((16,), 2.0), requires_grad=False)
        self.shift = torch.linspace(0, 1, 16)
        self.unused = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) * self.scale + self.shift
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def masked_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy with a weight for each token, and the sum of the weights."""
    losses = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten(), reduction="none")
    return (losses * batch["weights"].flatten()).sum(), batch["weights"].sum()


def masked_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens, labels = (torch.randint(50, (2, 7), generator=generator) for _ in range(2))
    return {"tokens": tokens, "labels": labels, "weights": torch.rand(2, 7, generator=generator)}


class Block(nn.Module):
    """A layer with dropout, a parameter that is cast, and an op that gives several results."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.linear(x.double(), self.inner.weight.double()).float()
        return x + self.drop(self.norm(wide).relu())


class Stack(nn.Module):
    """Layers straight on the batch, so that the first one's input has no gradient."""

    def __init__(self, num_layers: int = 3, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def mean_square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()
