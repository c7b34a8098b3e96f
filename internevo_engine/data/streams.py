"""data: the documents of token files, end to end in one endless stream that is cut into sequences. Feeds packing.

A stored document of L tokens gives L - 1 positions, token j as the input and token j + 1 as its label, so no label is
wasted. Each epoch cuts the stream every seq_len positions, from a place of its own, and shuffles these sequences.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from internevo_engine.data.arrays import Tokens
from internevo_engine.data.formats import TokenFile
from internevo_engine.data.order import draw, shuffled
from internevo_engine.errors import DataError


class Stream:
    """Token files in a row. Only the documents' ends are held (8 bytes each); tokens stay on disk."""

    def __init__(self, files: Sequence[TokenFile], *, seq_len: int, seed: int) -> None:
        """Lay the documents of `files` end to end.

        Raises:
            DataError: they hold no position at all.
        """
        self._files, self._seq_len, self._seed = tuple(files), seq_len, seed
        self._first_document = list(accumulate((len(file.index) - 1 for file in files), initial=0))
        lengths = [np.maximum(np.diff(file.index) - 1, 0) for file in files]
        self._ends = np.cumsum(np.concatenate(lengths))
        self.num_positions = int(self._ends[-1]) if len(self._ends) else 0
        """Positions (and so labels) of one epoch, or of one evaluation."""
        if not self.num_positions:
            paths = ", ".join(str(file.path) for file in files)
            raise DataError(f"no tokens to train on in {paths}; add documents")
        self.num_sequences = max(1, self.num_positions // seq_len)
        """Sequences of one epoch: the tail that doesn't fill one is left out, another one in each epoch."""

    def sequence(self, number: int) -> Iterator[Tokens]:
        """The stretches of a sequence, counted over all epochs."""
        epoch, slot = divmod(number, self.num_sequences)
        offset = draw(self._seed, epoch) % self._seq_len
        begin = offset + self._seq_len * shuffled(slot, self.num_sequences, self._seed, epoch)
        return self.stretches(begin, self._seq_len)

    def stretches(self, begin: int, length: int) -> Iterator[Tokens]:
        """The documents within `length` positions from `begin` on; n positions are n + 1 tokens, a view of the file.

        The stream is a ring: behind its last document comes the first.
        """
        begin %= self.num_positions
        document = int(np.searchsorted(self._ends, begin, side="right"))
        while length:
            end = int(self._ends[document])
            count = min(length, end - begin)
            if count:
                tokens = self._document(document)
                first = len(tokens) - 1 - (end - begin)
                yield tokens[first : first + count + 1]
            begin, length, document = begin + count, length - count, document + 1
            if document == len(self._ends):
                begin, document = 0, 0

    def _document(self, number: int) -> Tokens:
        file = bisect_right(self._first_document, number) - 1
        return self._files[file].document(number - self._first_document[file])
