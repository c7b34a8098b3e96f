"""serve: tokens become text as they come: whole characters, and nothing that could begin a stop string.

Between vocabulary.py, which decodes, and generate.py.
"""

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, or not one yet."""
LONGEST_CHARACTER = 4
"""Bytes of UTF-8: what is still broken after as many tokens stays so."""


class TextStream:
    """The text of one answer."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        """`context`: the last tokens of a text that the answer continues; else a space in front of it may be lost."""
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens = list(context)
        self._begin = 0
        """Where decoding starts: a token's text may depend on the one before."""
        self._told = len(self._tokens)
        """Tokens whose text was handed on."""
        self._held = ""
        """Text that may be the beginning of a stop string."""
        self.is_stopped = False
        """A stop string has come; the text ends before it."""

    def push(self, token: int) -> str:
        """The text that is certain now that `token` has come."""
        self._tokens.append(token)
        text = self._untold()
        if text.endswith(BROKEN) and len(self._tokens) - self._told < LONGEST_CHARACTER:
            return ""
        self._begin, self._told = self._told, len(self._tokens)
        return self._released(text)

    def finish(self) -> str:
        """What was held back; a character that was cut in half is left out."""
        rest = self._released(self._untold().rstrip(BROKEN))
        return rest if self.is_stopped else rest + self._held

    def _untold(self) -> str:
        before = self._decode(self._tokens[self._begin : self._told])
        return self._decode(self._tokens[self._begin :])[len(before) :]

    def _released(self, text: str) -> str:
        """Of what is held and `text`, all but the longest end that a stop string could begin with."""
        self._held += text
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            self.is_stopped = True
            return self._held[: min(places)]
        longest = max(map(len, self._stop), default=1) - 1
        ends = (self._held[len(self._held) - n :] for n in range(min(longest, len(self._held)), 0, -1))
        kept = next((end for end in ends if any(stop.startswith(end) for stop in self._stop)), "")
        released, self._held = self._held[: len(self._held) - len(kept)], kept
        return released
