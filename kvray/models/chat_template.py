"""Renders conversations by a model's chat template, as transformers does, but within a tenth of a second.

transformers' renderer takes a second to import, its tokenizers ten: too long for a plan. This one uses jinja2 with the
same settings; a template that it cannot parse is left to transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

Conversation = Sequence[Mapping[str, str]]


class ChatTemplate:
    """A chat template in jinja2's language; ``special_tokens`` are its variables ``bos_token``, ``eos_token`` etc."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._template: Template | None
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError:
            # transformers extends jinja2 by one block, {% generation %}.
            self._template = None

    def __call__(self, conversations: Sequence[Conversation], prompt: bool) -> list[str]:
        """Return the texts of conversations; ``prompt`` adds what comes before an answer."""
        chats = [list(messages) for messages in conversations]
        options = {"add_generation_prompt": prompt, **self._special_tokens}
        if self._template is not None:
            return [self._template.render(messages=chat, tools=None, documents=None, **options) for chat in chats]
        from transformers.utils.chat_template_utils import render_jinja_template

        texts: list[str] = render_jinja_template(chats, chat_template=self._source, **options)[0]
        return texts


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    # jinja2's own filter escapes HTML.
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
