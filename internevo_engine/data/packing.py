"""data: from token files to micro-batches. Reads what formats wrote; loader runs it ahead of the training loop.

A micro-batch is a pack: P = seq_len * micro_batch positions in a row, without a batch dimension. A stored document of
L tokens gives L - 1 positions: token j is the input and token j + 1 its label, so no label is wasted. The documents of
an epoch are shuffled, laid end to end and cut every P positions. Attention and positions restart at every document, at
the start of a pack, and after seq_len positions: such a stretch is a piece.

Which pack is which is a pure function of (seed, step, number). Nothing has to be saved to resume, and the world size
decides only who takes which pack.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    """int32 [D+1]: where each piece starts; the last is P."""

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
        """Only the documents' lengths are loaded (8 bytes each); tokens stay on disk.

        Raises:
            DataError: the token files hold no position at all.
        """
        self._files = tuple(token_files)
        self._seq_len = seq_len
        self._pack_size = seq_len * micro_batch
        self._seed = seed
        self._first_document = np.cumsum([0, *(len(file.index) - 1 for file in self._files)])
        self._lengths = np.concatenate([np.maximum(np.diff(file.index) - 1, 0) for file in self._files])
        self._shuffled_order = lru_cache(maxsize=1)(self._shuffle)
        self.num_positions = int(self._lengths.sum())
        """Positions (and so labels) of one epoch, or of one evaluation."""
        self.num_bytes = sum(file.manifest.num_bytes for file in self._files)
        """UTF-8 size of the text, for bits per byte."""
        if not self.num_positions:
            raise DataError(
                f"no tokens to train on in {', '.join(str(file.path) for file in self._files)}; add documents"
            )

    def micro_batch(self, step: int, number: int, per_step: int) -> MicroBatch:
        """See Corpus. Each epoch has its own order and drops the tail that doesn't fill a pack."""
        ranges = self._epoch_ranges(step * per_step + number)
        stretches = (
            s for epoch, begin, end in ranges for s in self._stretches(self._shuffled_order(epoch), begin, end)
        )
        return _pack(stretches, self._pack_size, self._seq_len)

    @property
    def num_evaluation_packs(self) -> int:
        return -(-self.num_positions // self._pack_size)

    def evaluation_packs(self, rank: int = 0, world: int = 1) -> Iterator[MicroBatch]:
        """Every `world`-th pack from `rank` on; over all ranks each stored position occurs once, in the stored order.

        The last pack is filled up with token 0 and label IGNORED, in pieces of its own.
        """
        order = _Order.of(np.arange(len(self._lengths)), self._lengths)
        for pack in range(rank, self.num_evaluation_packs, world):
            begin = pack * self._pack_size
            end = min(begin + self._pack_size, self.num_positions)
            yield _pack(self._stretches(order, begin, end), self._pack_size, self._seq_len)

    def _epoch_ranges(self, pack: int) -> Iterator[tuple[int, int, int]]:
        """(epoch, begin, end) of the positions in a pack; several epochs only where an epoch doesn't fill one pack."""
        packs_per_epoch = self.num_positions // self._pack_size
        if packs_per_epoch:
            epoch, place = divmod(pack, packs_per_epoch)
            yield epoch, place * self._pack_size, (place + 1) * self._pack_size
            return
        position, end = pack * self._pack_size, (pack + 1) * self._pack_size
        while position < end:
            epoch, begin = divmod(position, self.num_positions)
            length = min(self.num_positions - begin, end - position)
            yield epoch, begin, begin + length
            position += length

    def _shuffle(self, epoch: int) -> "_Order":
        # Sorting raw draws: NumPy promises the stream of a bit generator for good, but not that of permutation().
        keys = _random(self._seed, epoch, len(self._lengths))
        return _Order.of(np.argsort(keys, kind="stable"), self._lengths)

    def _stretches(self, order: "_Order", begin: int, end: int) -> Iterator[Tokens]:
        """The documents between two positions of an epoch; n positions are n + 1 tokens, a view into the file."""
        slot = int(np.searchsorted(order.ends, begin, side="right"))
        while begin < end:
            slot_end = int(order.ends[slot])
            tokens = self._document(int(order.documents[slot]))
            first = len(tokens) - 1 - (slot_end - begin)
            stop = min(slot_end, end)
            if begin < stop:
                yield tokens[first : first + stop - begin + 1]
            begin, slot = stop, slot + 1

    def _document(self, number: int) -> Tokens:
        file = int(np.searchsorted(self._first_document, number, side="right")) - 1
        return self._files[file].document(number - int(self._first_document[file]))


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


@dataclass(frozen=True)
class _Order:
    """The documents of an epoch, laid end to end."""

    documents: Int64s
    """[D]: number of the document in each slot."""
    ends: Int64s
    """[D]: position behind the last one of each slot."""

    @classmethod
    def of(cls, documents: Int64s, lengths: Int64s) -> "_Order":
        return cls(documents, np.cumsum(lengths[documents]))


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
        torch.from_numpy(cu_seqlens.astype(np.int32)),
    )


def _cut(ends: Int64s, seq_len: int) -> Int64s:
    """[0, 5, 6], 2 -> [0, 2, 4, 5, 6]: the boundaries of stretches, and those of pieces of seq_len within each."""
    begins, lengths = ends[:-1], np.diff(ends)
    num_pieces = -(-lengths // seq_len)
    nth = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    return np.append(np.repeat(begins, num_pieces) + nth * seq_len, ends[-1])


def _move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
