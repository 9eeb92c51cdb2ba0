"""Examples as chat messages, and a model's chat template, which makes texts of them.

An example is one user message, or a chat whose earlier messages are the example's history. transformers' renderer of
templates takes a second to import, its tokenizers ten: too long for a plan. :class:`ChatTemplate` uses jinja2 with the
same settings and the same extension of its language.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import pyarrow as pa
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": …}
Prompt = str | list[Message]
"""One user message; or a chat that ends in one, or in the beginning of the assistant's answer to it."""


def conversation(prompt: Prompt, system: str | None = None) -> list[Message]:
    """Return a prompt as messages; ``system`` is the first one, unless the chat has a system message of its own."""
    chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    first = [{"role": "system", "content": system}] if system and chat[0]["role"] != "system" else []
    return [*first, *chat]


def answered(prompt: Prompt, answer: str, system: str | None = None) -> list[Message]:
    """Return a prompt with its answer as messages; see :func:`conversation`."""
    return [*conversation(prompt, system), {"role": "assistant", "content": answer}]


def prompts_of(examples: pa.Table) -> list[Prompt]:
    """Return the prompts of a table of examples, each with its history if it has one."""
    prompts: list[Prompt] = examples["prompt"].to_pylist()
    if "history" not in examples.column_names:
        return prompts
    earlier = examples["history"].to_pylist()
    return [
        [*json.loads(before), *conversation(prompt)] if before else prompt
        for before, prompt in zip(earlier, prompts, strict=True)
    ]


def asked_of(examples: pa.Table) -> list[Prompt]:
    """Return the prompts as they are asked: each ends with the beginning of the answer, if the examples have one."""
    prompts = prompts_of(examples)
    if "answer_prefix" not in examples.column_names:
        return prompts
    return [
        answered(prompt, begun) if begun else prompt
        for prompt, begun in zip(prompts, examples["answer_prefix"].to_pylist(), strict=True)
    ]


def closed(prompt: Prompt) -> Prompt:
    """Return a prompt for a server, which would not go on from an answer's beginning: the user's message ends with it.

    As RULER sends its answer prefixes to APIs (Hsieh et al. 2024, NVIDIA/RULER).
    """
    if isinstance(prompt, str) or prompt[-1]["role"] != "assistant":
        return prompt
    *earlier, user, begun = prompt
    text = f"{user['content']} {begun['content']}"
    return [*earlier, {**user, "content": text}] if earlier else text


def plain_text(prompts: Sequence[Prompt]) -> list[str]:
    """Return the text of each prompt, its messages joined, for counting without a chat template."""
    return ["\n".join(message["content"] for message in conversation(prompt)) for prompt in prompts]


def json_lines(examples: pa.Table, system: str | None = None, further: Sequence[str] = ()) -> bytes:
    """Return examples (columns ``prompt``, ``answer``) as JSON lines, ``{"messages": [user, assistant]}``.

    Chats also have a column ``history``. ``system`` starts each line that has no system message of its own;
    ``further`` names columns to add beside the messages.
    """
    lines = []
    for prompt, row in zip(prompts_of(examples), examples.select(["answer", *further]).to_pylist(), strict=True):
        chat = answered(prompt, row.pop("answer"), system)
        lines.append(json.dumps({"messages": chat, **row}, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}``, by which templates mark the assistant's words: the text is as without.

    The body is a call block, as in transformers, so that variables set inside it stay there.
    """

    tags = {"generation"}  # noqa: RUF012  # as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [loopcontrols, _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    # jinja2's own filter escapes HTML.
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


class ChatTemplate:
    """A chat template in jinja2's language; ``special_tokens`` are its variables ``bos_token``, ``eos_token`` etc.

    Raises jinja2's TemplateSyntaxError for a template that is none.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self._template = _environment().from_string(source)

    def __call__(self, conversations: Sequence[Sequence[Message]], prompt: bool) -> list[str]:
        """Return the texts of conversations; ``prompt`` adds what comes before an answer."""
        options = {"add_generation_prompt": prompt, **self._special_tokens}
        render = self._template.render
        return [render(messages=list(chat), tools=None, documents=None, **options) for chat in conversations]
