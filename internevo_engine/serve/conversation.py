"""serve: a dialogue that goes on. Between generate.py and the terminal (chat.py)."""

from collections.abc import Generator
from dataclasses import dataclass, field

from internevo_engine.data.records import Turn
from internevo_engine.serve.generate import Request, generate
from internevo_engine.serve.load import LanguageModel
from internevo_engine.serve.sampling import Sampling


@dataclass
class Conversation:
    """What was said, and with whom. A model without a chat template continues each text by itself."""

    model: LanguageModel
    sampling: Sampling
    max_tokens: int
    """Of one answer."""
    system: str = ""
    """What stands before the dialogue; empty: nothing."""
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer, piece by piece. Whoever stops listening ends it; what was said by then is remembered.

        Raises:
            UsageError: the text alone doesn't fit into the model's context; it is not remembered.
        """
        request = self._request(text)
        answer = ""
        try:
            for chunk in generate(self.model, [request]):
                answer += chunk.text
                yield chunk.text
        finally:
            self.turns = [*self.turns, Turn("user", text), Turn("assistant", answer)] if answer else self.turns

    def _request(self, text: str) -> Request:
        if self.model.prompt is None:
            prompt = self.model.vocabulary.begin(text)
            return Request(prompt, self.sampling, self.max_tokens, continues_text=True)
        before = [Turn("system", self.system)] if self.system else []
        prompt = self.model.prompt([*before, *self.turns, Turn("user", text)])
        room = self.model.max_len - min(self.max_tokens, self.model.max_len // 2)
        while self.turns and len(prompt) > room:
            self.turns = self.turns[2:]  # a question and its answer: the oldest are forgotten
            prompt = self.model.prompt([*before, *self.turns, Turn("user", text)])
        return Request(prompt, self.sampling, self.max_tokens)
