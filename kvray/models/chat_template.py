"""Conversations to text by a model's chat template, as transformers words them, within a tenth of a second.

transformers' own renderer takes more than a second to import and its tokenizers ten, which is longer than a plan may
take. This one has the same settings of jinja2; a template that it cannot read is left to transformers.
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
    """Words conversations."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Take a template.

        Args:
            source: in jinja2's language.
            special_tokens: what it may name: ``bos_token``, ``eos_token``, ….
        """
        self._source = source
        self._known = dict(special_tokens)
        self._template: Template | None = None
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError:
            # transformers knows one more block, {% generation %}: words are left to it.
            self._template = None

    def __call__(self, conversations: Sequence[Conversation], prompt: bool) -> list[str]:
        """Return the texts of conversations.

        Args:
            conversations: messages with "role" and "content".
            prompt: whether what comes before an answer is added.
        """
        if self._template is None:
            return self._by_transformers(conversations, prompt)
        return [
            self._template.render(
                messages=list(each), tools=None, documents=None, add_generation_prompt=prompt, **self._known
            )
            for each in conversations
        ]

    def _by_transformers(self, conversations: Sequence[Conversation], prompt: bool) -> list[str]:
        from transformers.utils.chat_template_utils import render_jinja_template

        chats = [list(each) for each in conversations]
        made = render_jinja_template(chats, chat_template=self._source, add_generation_prompt=prompt, **self._known)
        texts: list[str] = made[0]
        return texts


def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    # jinja2's own filter escapes what HTML would read.
    found.filters["tojson"] = _json
    found.globals["raise_exception"] = _refuse
    found.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return found


def _json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
