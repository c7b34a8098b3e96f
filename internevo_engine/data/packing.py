"""data: from streams of documents to micro-batches. loader runs it ahead of the training loop.

A micro-batch is a pack of `micro_batch` sequences in a row, without a batch dimension. Attention and positions restart
at every document and every sequence: such a stretch is a piece. With `pack_sample_into_one` they restart at sequences
only. A token that is stored as not counted is read like any other, and no label.

Which pack is which is a pure function of (seed, step, number): order decides it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from internevo_engine.data.arrays import Tokens
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.order import Mixture
from internevo_engine.data.streams import Stream

IGNORED = -100
"""Label of a position that isn't counted; torch's cross-entropy has the same default."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """One pack of P positions in D pieces."""

    tokens: torch.Tensor
    """int64 [P]"""
    labels: torch.Tensor
    """int64 [P]: the next token of the document, or IGNORED."""
    positions: torch.Tensor
    """int64 [P]: 0, 1, 2 ... within each piece."""
    cu_seqlens: torch.Tensor
    """int32 [P+1]: where each piece starts, then P until the end: packs of any documents have one shape."""

    def to(self, device: torch.device) -> "MicroBatch":
        """A copy on `device`; to CUDA from pinned memory, without waiting."""
        return MicroBatch(*(_move(t, device) for t in (self.tokens, self.labels, self.positions, self.cu_seqlens)))


class Corpus(Protocol):
    """What can be trained on."""

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """Micro-batch `number` of the `per_step` that all ranks together take in `step`; a pure function."""
        ...


class PackedCorpus:
    """Documents of one or several token files, packed."""

    def __init__(
        self,
        token_files: Sequence[TokenFile],
        *,
        seq_len: int,
        micro_batch: int,
        seed: int,
        weights: Sequence[float] | None = None,
        pack_sample_into_one: bool = False,
    ) -> None:
        """Pack `token_files`: as one stream, or with `weights` each as a stream of its own, mixed by sequences.

        Raises:
            DataError: there is no position at all, or a weight is too small to be heard.
        """
        groups = [token_files] if weights is None else [[file] for file in token_files]
        self._streams = [Stream(group, seq_len=seq_len, seed=seed) for group in groups]
        self._mixture = Mixture.of(weights or [1.0], seed)
        self._layout = Layout(seq_len, micro_batch, pack_sample_into_one)
        self.num_positions = sum(stream.num_positions for stream in self._streams)
        """Positions (and so labels) of one epoch, or of one evaluation."""
        sizes = [file.manifest.num_bytes for file in token_files]
        self.num_bytes = sum(sizes) if all(sizes) else 0
        """UTF-8 size of the text, for bits per byte; 0 where it isn't known."""

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """See Corpus."""
        first = (step * per_step + number) * self._layout.micro_batch
        places = map(self._mixture.locate, range(first, first + self._layout.micro_batch))
        return self._layout.pack([tokens for n, k in places for tokens in self._streams[n].sequence(k)])

    @property
    def num_evaluation_packs(self) -> int:
        return -(-self.num_positions // self._layout.size)

    def evaluation_packs(self, rank: int = 0, world: int = 1) -> Iterator[MicroBatch]:
        """Every `world`-th pack from `rank` on; over all ranks each position occurs once, in the stored order.

        The last pack is filled up with token 0 and label IGNORED, in pieces of its own. Without weights only.
        """
        (stream,) = self._streams
        size = self._layout.size
        for begin in range(rank * size, self.num_positions, world * size):
            yield self._layout.pack(stream.stretches(begin, min(size, self.num_positions - begin)))


class RandomCorpus:
    """Uniform random tokens in pieces of exactly seq_len: for measuring speed, and for trying a configuration."""

    def __init__(self, vocab: int, *, seq_len: int, micro_batch: int, seed: int) -> None:
        self._vocab = vocab
        self._layout = Layout(seq_len, micro_batch)
        self._seed = seed

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """See Corpus."""
        draws = _random(self._seed, step * per_step + number, self._layout.size + 1)
        return self._layout.pack([(draws % self._vocab).astype(np.int64)])


def _random(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(np.random.SeedSequence([seed, stream])).random_raw(count)


@dataclass(frozen=True)
class Layout:
    """How stretches become a pack of micro_batch * seq_len positions."""

    seq_len: int
    micro_batch: int
    pack_sample_into_one: bool = False
    """Pieces are whole sequences: attention and positions run on from a document to the next."""

    @property
    def size(self) -> int:
        return self.seq_len * self.micro_batch

    def pack(self, stretches: Iterable[Tokens]) -> MicroBatch:
        """Lay stretches (n + 1 tokens for n positions) end to end, cut those longer than seq_len, and fill up."""
        stretches = list(stretches)
        ends = np.cumsum([0, *(len(stretch) - 1 for stretch in stretches)])
        tokens, labels = np.empty(self.size, np.int64), np.empty(self.size, np.int64)
        np.concatenate([stretch[:-1] for stretch in stretches], out=tokens[: ends[-1]])
        np.concatenate([stretch[1:] for stretch in stretches], out=labels[: ends[-1]])
        tokens[ends[-1] :], labels[ends[-1] :] = 0, IGNORED
        if tokens.min() < 0 or labels.min() < 0:
            np.bitwise_xor(tokens, tokens >> 63, out=tokens)  # ~t where t is negative
            labels[labels < 0] = IGNORED
        if ends[-1] < self.size:
            ends = np.append(ends, self.size)
        cu_seqlens = _cut(np.array([0, self.size]) if self.pack_sample_into_one else ends, self.seq_len)
        return MicroBatch(
            *map(torch.from_numpy, (tokens, labels, self._positions(cu_seqlens), self._padded(cu_seqlens)))
        )

    def _positions(self, cu_seqlens: Int64s) -> Int64s:
        within = np.arange(self.seq_len)
        return np.concatenate([within[:length] for length in np.diff(cu_seqlens).tolist()])

    def _padded(self, cu_seqlens: Int64s) -> npt.NDArray[np.int32]:
        padded = np.full(self.size + 1, self.size, np.int32)
        padded[: len(cu_seqlens)] = cu_seqlens
        return padded


def _cut(ends: Int64s, seq_len: int) -> Int64s:
    """[0, 5, 6], 2 -> [0, 2, 4, 5, 6]: the boundaries of stretches, and those of pieces of seq_len within each."""
    begins, lengths = ends[:-1], np.diff(ends)
    if lengths.max() <= seq_len:
        return ends
    num_pieces = -(-lengths // seq_len)
    nth = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return np.append(np.repeat(begins, num_pieces) + nth * seq_len, ends[-1])


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
