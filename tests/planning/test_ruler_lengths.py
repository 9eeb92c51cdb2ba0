"""A plan counts RULER's prompts with their answer prefix, and leaves each its own answer's tokens, at real size."""

from __future__ import annotations

from pathlib import Path

import mistral

from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.planning.lengths import counting, measure
from kvray.tasks.ruler.ruler import Ruler


def test_every_task_fits_the_length_that_it_is_asked_at(tmp_path: Path) -> None:
    base = resolve(str(mistral.mistral(tmp_path / "mistral")))
    task = Ruler(lengths=[4096, 32768], rows=1)
    context, counted = task.context(token_counter(base)), counting(base)
    assert counted is not None
    lengths = measure(task, context, 26, counted)
    assert lengths.whole and lengths.written is not None
    assert lengths.written.reshape(2, 13)[0].tolist() == [128] * 8 + [30, 120, 50, 32, 32]
    used = (lengths.asked + lengths.written).reshape(2, 13)
    # Prompt, prefix, answer and Mistral's few tokens of a template are all of a length but what is left to spare.
    for at, length in enumerate(task.lengths):
        assert (used[at] <= length).all() and (used[at] > length - 48 - length // 256 - 200).all()
