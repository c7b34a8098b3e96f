"""data: from token files to micro-batches. Reads what formats wrote; loader runs it ahead of the training loop.

The documents lie end to end in one long stream of positions: a stored document of L tokens gives L - 1 of them, token
j as the input and token j + 1 as its label, so no label is wasted. Each epoch cuts the stream every seq_len positions,
from a place of its own, and shuffles these sequences. A micro-batch is a pack of `micro_batch` of them in a row,
without a batch dimension. Attention and positions restart at every document and every sequence: such a stretch is a
piece.

Which pack is which is a pure function of (seed, step, number). Nothing has to be saved to resume, nothing has to be
kept per document or sequence, and the world size decides only who takes which pack.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from internevo_engine.data.formats import TokenFile, Tokens
from internevo_engine.errors import DataError

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

    def __init__(self, token_files: Sequence[TokenFile], *, seq_len: int, micro_batch: int, seed: int) -> None:
        """Only the documents' ends are held (8 bytes each); tokens stay on disk.

        Raises:
            DataError: the token files hold no position at all.
        """
        self._files = tuple(token_files)
        self._seq_len, self._micro_batch, self._seed = seq_len, micro_batch, seed
        self._first_document = np.cumsum([0, *(len(file.index) - 1 for file in self._files)])
        lengths = [np.maximum(np.diff(file.index) - 1, 0) for file in self._files]
        self._ends = np.cumsum(np.concatenate(lengths))
        self.num_positions = int(self._ends[-1]) if len(self._ends) else 0
        """Positions (and so labels) of one epoch, or of one evaluation."""
        self.num_bytes = sum(file.manifest.num_bytes for file in self._files)
        """UTF-8 size of the text, for bits per byte."""
        if not self.num_positions:
            paths = ", ".join(str(file.path) for file in self._files)
            raise DataError(f"no tokens to train on in {paths}; add documents")
        self._sequences_per_epoch = max(1, self.num_positions // seq_len)

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """See Corpus. An epoch leaves out the tail that doesn't fill a sequence, which is another one each time."""
        first = (step * per_step + number) * self._micro_batch
        stretches = [
            stretch
            for sequence in range(first, first + self._micro_batch)
            for stretch in self._stretches(self._begin_of(sequence), self._seq_len)
        ]
        return _pack(stretches, self._micro_batch * self._seq_len, self._seq_len)

    @property
    def num_evaluation_packs(self) -> int:
        return -(-self.num_positions // (self._micro_batch * self._seq_len))

    def evaluation_packs(self, rank: int = 0, world: int = 1) -> Iterator[MicroBatch]:
        """Every `world`-th pack from `rank` on; over all ranks each position occurs once, in the stored order.

        The last pack is filled up with token 0 and label IGNORED, in pieces of its own.
        """
        pack_size = self._micro_batch * self._seq_len
        for begin in range(rank * pack_size, self.num_positions, world * pack_size):
            length = min(pack_size, self.num_positions - begin)
            yield _pack(self._stretches(begin, length), pack_size, self._seq_len)

    def _begin_of(self, sequence: int) -> int:
        """Where in the stream a sequence begins, counted over all epochs."""
        epoch, slot = divmod(sequence, self._sequences_per_epoch)
        offset = _draw(self._seed, epoch) % self._seq_len
        return offset + self._seq_len * shuffled(slot, self._sequences_per_epoch, self._seed, epoch)

    def _stretches(self, begin: int, length: int) -> Iterator[Tokens]:
        """The documents within `length` positions from `begin` on; n positions are n + 1 tokens, a view of the file.

        The stream is a ring: behind its last document comes the first.
        """
        while length:
            begin %= self.num_positions
            document = int(np.searchsorted(self._ends, begin, side="right"))
            count = min(length, int(self._ends[document]) - begin)
            tokens = self._document(document)
            first = len(tokens) - 1 - (int(self._ends[document]) - begin)
            yield tokens[first : first + count + 1]
            begin, length = begin + count, length - count

    def _document(self, number: int) -> Tokens:
        file = int(np.searchsorted(self._first_document, number, side="right")) - 1
        return self._files[file].document(number - int(self._first_document[file]))


def shuffled(index: int, count: int, *key: int) -> int:
    """Where a pseudo-random permutation of range(count) takes `index`; no table, whatever the count.

    A Feistel network on the next power of four, walked along its cycle until it is back in range (Black and Rogaway,
    "Ciphers with arbitrary finite domains", CT-RSA 2002, method 2).
    """
    half = ((count - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_number in range(4):
            left, right = right, left ^ (_draw(*key, round_number, right) & mask)
        index = left << half | right
        if index < count:
            return index


class RandomCorpus:
    """Uniform random tokens in pieces of exactly seq_len: for measuring speed, and for trying a configuration."""

    def __init__(self, vocab: int, *, seq_len: int, micro_batch: int, seed: int) -> None:
        self._vocab = vocab
        self._seq_len = seq_len
        self._pack_size = seq_len * micro_batch
        self._seed = seed

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """See Corpus."""
        draws = _random(self._seed, step * per_step + number, self._pack_size + 1)
        return _pack([(draws % self._vocab).astype(np.int64)], self._pack_size, self._seq_len)


def _draw(*key: int) -> int:
    """64 pseudo-random bits, a pure function of the key, the same on every machine."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little")


def _random(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(np.random.SeedSequence([seed, stream])).random_raw(count)


def _pack(stretches: Iterable[Tokens], pack_size: int, seq_len: int) -> MicroBatch:
    """Lay stretches (n + 1 tokens for n positions) end to end, cut those longer than seq_len, and fill up."""
    tokens = np.zeros(pack_size, np.int64)
    labels = np.full(pack_size, IGNORED, np.int64)
    ends = [0]
    for stretch in stretches:
        begin, end = ends[-1], ends[-1] + len(stretch) - 1
        tokens[begin:end] = stretch[:-1]
        labels[begin:end] = stretch[1:]
        ends.append(end)
    if ends[-1] < pack_size:
        ends.append(pack_size)
    cu_seqlens = _cut(np.array(ends), seq_len)
    positions = np.arange(pack_size) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return MicroBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(labels),
        torch.from_numpy(positions),
        torch.from_numpy(np.pad(cu_seqlens, (0, pack_size + 1 - len(cu_seqlens)), mode="edge").astype(np.int32)),
    )


def _cut(ends: Int64s, seq_len: int) -> Int64s:
    """[0, 5, 6], 2 -> [0, 2, 4, 5, 6]: the boundaries of stretches, and those of pieces of seq_len within each."""
    begins, lengths = ends[:-1], np.diff(ends)
    num_pieces = -(-lengths // seq_len)
    nth = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return np.append(np.repeat(begins, num_pieces) + nth * seq_len, ends[-1])


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
