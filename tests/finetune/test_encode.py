"""The training prefix is evaluation's prompt, labels are the answer alone, and nothing is ever cut."""

from __future__ import annotations

import numpy as np
import pytest

from kvray.errors import InputError
from kvray.finetune.encode import count, encode, join
from kvray.models.reference import BaseModelRef, load_tokenizer

CHATML = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def tokenizer(mini: BaseModelRef):
    return load_tokenizer(mini)


def test_a_row_is_evaluations_prompt_followed_by_answer_and_end(tokenizer, texts):
    prompts, answers = texts(300)
    encoded = encode(tokenizer, prompts, answers)
    for i in (0, 1, 255, 256, 299):
        user = [{"role": "user", "content": prompts[i]}]
        asked = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
        row, count = encoded.ids[i].tolist(), int(encoded.answers[i])
        assert row[:-count] == asked
        assert row[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row[-count:-1]).strip() == answers[i]


def test_rows_are_counted_as_they_are_encoded(tokenizer, texts):
    prompts, answers = texts(300)
    assert count(tokenizer, prompts, answers).tolist() == encode(tokenizer, prompts, answers).lengths.tolist()
    tokenizer.chat_template = CHATML
    # An answer that holds the end token itself, and a template that writes behind it.
    answers[7] = f"a{tokenizer.eos_token}b"
    assert count(tokenizer, prompts, answers).tolist() == encode(tokenizer, prompts, answers).lengths.tolist()
    tokenizer.chat_template = CHATML.replace("{{ eos_token }}", "")
    with pytest.raises(InputError, match=r"row 0.*never learn to stop"):
        count(tokenizer, ["What?"], ["That."])


def test_what_a_template_writes_behind_the_end_token_is_not_trained_on(tokenizer):
    tokenizer.chat_template = CHATML
    encoded = encode(tokenizer, ["What?"], ["That."])
    assert encoded.ids[0][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.ids[0][-int(encoded.answers[0]) :]) == f"That.{tokenizer.eos_token}"


def test_an_end_token_of_the_model_ends_an_answer_too(tokenizer):
    tokenizer.chat_template = CHATML.replace("{{ eos_token }}", "{{ bos_token }}")
    with pytest.raises(InputError, match=r"row 0.*never learn to stop"):
        encode(tokenizer, ["What?"], ["That."])
    encoded = encode(tokenizer, ["What?"], ["That."], end_ids=[tokenizer.bos_token_id])
    assert encoded.ids[0][-1] == tokenizer.bos_token_id


def test_a_template_that_breaks_the_prefix_property_is_an_error_that_shows_where(tokenizer):
    tokenizer.chat_template = CHATML.replace("<assistant>", "<assistant>think ")
    with pytest.raises(InputError, match=r"q7: .*breaks the prefix property.*think"):
        encode(tokenizer, ["What?"], ["That."], names=["q7"])


def test_no_chat_template_is_an_error(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        encode(tokenizer, ["What?"], ["That."])


def test_rows_over_the_maximum_are_named_with_their_lengths_and_none_is_cut(tokenizer, texts):
    prompts, answers = texts(20)
    names = [f"e{i}" for i in range(20)]
    lengths = encode(tokenizer, prompts, answers).lengths
    limit = int(np.sort(lengths)[-3])
    with pytest.raises(InputError) as caught:
        encode(tokenizer, prompts, answers, names=names, max_length=limit)
    over = [i for i in range(20) if lengths[i] > limit]
    assert 0 < len(over) <= 2
    for i in over:
        assert f"e{i} ({lengths[i]} tokens)" in str(caught.value)
    assert (encode(tokenizer, prompts, answers, max_length=int(lengths.max())).lengths == lengths).all()


def test_take_and_join_keep_rows_whole(rows):
    picked = rows.take(np.array([3, 0, 3]))
    both = join([picked, rows])
    assert len(both) == 3 + len(rows)
    for at, source in enumerate([3, 0, 3, *range(len(rows))]):
        assert (both.ids[at] == rows.ids[source]).all()
        assert both.answers[at] == rows.answers[source]
