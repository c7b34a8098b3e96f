"""serve: the turns of a dialogue as the prompt of the next answer. Between chat or server and generate.py.

A model of ours uses the table it was trained with (data/chat.py); one from Hugging Face brings a Jinja template, which
runs in a sandbox (jinja2 is a dependency of torch). Either way a mark that is spelled out in a message stays text.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from internevo_engine.data.chat import encode_prompt, end_of_answer
from internevo_engine.data.records import Turn
from internevo_engine.data.tokenizers import Tokenizer
from internevo_engine.errors import DataError, UsageError
from internevo_engine.interop.tensors import read_json
from internevo_engine.serve.vocabulary import HfVocabulary

Prompt = Callable[[Sequence[Turn]], list[int]]
"""Tokens up to where the assistant's answer begins. Raises UsageError where the template refuses the turns."""
TEMPLATE_OF: Mapping[str, str] = {
    "internlm": "internlm",
    "internlm2": "internlm2",
    "internlm3": "internlm2",
    "llama": "internlm2",
}
"""By family: the row of data/chat.py's TEMPLATES that its chat models are trained with."""
CUT = "\ue000"
"""A private-use character that cuts a spelled mark in two; what people write keeps none."""


def table_prompt(name: str, tokenizer: Tokenizer) -> tuple[Prompt | None, frozenset[int]]:
    """Prompts by a row of TEMPLATES, and the token that ends an answer; neither where the tokenizer lacks its marks."""
    try:
        encode_prompt((Turn("user", ""),), name, tokenizer)
        ends = frozenset({end_of_answer(name, tokenizer)})
    except DataError:
        return None, frozenset()
    return partial(encode_prompt, template=name, tokenizer=tokenizer), ends


def jinja_prompt(folder: Path, vocabulary: HfVocabulary) -> Prompt | None:
    """Prompts by the template in a Hugging Face folder; None where there is none.

    Raises:
        DataError: the template can't be parsed.
    """
    settings_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    source = template_file.read_text("utf-8") if template_file.is_file() else settings.get("chat_template")
    if not isinstance(source, str):
        return None
    try:
        template = _sandbox().from_string(source)
    except jinja2.TemplateError as error:
        raise DataError(f"{folder}: its chat template can't be read: {error}") from error
    names = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token")}
    return partial(_render, template, names, _spelled(vocabulary.marks), vocabulary)


def _sandbox() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.globals["raise_exception"] = _refuse
    return sandbox


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _text(token: object) -> str:
    """A token's text, which settings write as itself or as an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _spelled(marks: Sequence[str]) -> re.Pattern[str]:
    """Matches behind the first character of each mark, and nothing where there are none."""
    cuts = [f"(?<={re.escape(mark[0])})(?={re.escape(mark[1:])})" for mark in marks if len(mark) > 1]
    return re.compile("|".join(cuts) or "(?!)")


def _render(
    template: jinja2.Template,
    names: Mapping[str, str],
    spelled: re.Pattern[str],
    vocabulary: HfVocabulary,
    turns: Sequence[Turn],
) -> list[int]:
    contents = [spelled.sub(CUT, turn.content.replace(CUT, "")) for turn in turns]
    messages = [{"role": turn.role, "content": text} for turn, text in zip(turns, contents, strict=True)]
    try:
        text = template.render(messages=messages, add_generation_prompt=True, **names)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        raise UsageError(f"the model's chat template refuses these messages: {error}") from error
    return [token for part in text.split(CUT) for token in vocabulary.encode(part)]
