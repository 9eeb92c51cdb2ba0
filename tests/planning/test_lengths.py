"""What a plan counts is what a finetune reads and an engine is asked, to the token where every row is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kvray.driver import run
from kvray.errors import InputError
from kvray.finetune import encode
from kvray.finetune.storage import limits, select
from kvray.generate.job import build
from kvray.models.chat import conversation
from kvray.models.reference import BaseModelRef, load_tokenizer, resolve
from kvray.models.tokenizer import chat_tokens, token_counter
from kvray.planning.artefacts import Artefact, FinetuneJob
from kvray.planning.lengths import counting, measure
from kvray.tasks.base import Task
from kvray.tasks.in2.in2 import In2
from kvray.tasks.kv.simple import SimpleKV

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Words around the message that are no special tokens here, so that the message's edges are tokenized with them."""


@pytest.fixture(scope="module")
def tiny() -> BaseModelRef:
    return resolve("kvray-tiny")


@pytest.fixture
def worded(tiny: BaseModelRef, tmp_path: Path) -> BaseModelRef:
    """The bundled model with a template that joins the message's edges."""
    shutil.copytree(tiny.location, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").write_text(CHATML)
    return resolve(str(tmp_path / "m"))


def check(task: Task, base: BaseModelRef, rows: int) -> None:
    """Compare with the encodings of both stages."""
    counted = counting(base)
    assert counted is not None
    found = measure(task, task.context(token_counter(base)), rows, counted)
    assert found.whole
    table = build(task, base, range(rows))
    chats = [conversation(prompt) for prompt in table["prompt"].to_pylist()]
    asked = chat_tokens(load_tokenizer(base), chats, prompt=True)
    assert found.asked.tolist() == [len(ids) for ids in asked]
    texts = table["prompt"].to_pylist(), table["answer"].to_pylist()
    trained = encode.count(load_tokenizer(base), *texts, end_ids=limits(base)[1])
    assert found.trained.tolist() == trained.tolist()
    assert found.prompts.tolist() == table["prompt_tokens"].to_pylist()


@pytest.mark.parametrize("task", [SimpleKV(rows=40, dictionaries=5), In2(rows=20, segment_tokens=48)])
def test_lengths_are_those_of_both_stages(task: Task, tiny: BaseModelRef, worded: BaseModelRef) -> None:
    for base in (tiny, worded):
        check(task, base, task.rows)  # type: ignore[attr-defined]


def test_a_sample_is_spread_and_its_mean_is_close(tiny: BaseModelRef) -> None:
    counted = counting(tiny)
    assert counted is not None
    task = SimpleKV(rows=100_000, dictionaries=5)
    found = measure(task, task.context(token_counter(tiny)), task.rows, counted)
    assert not found.whole and found.real and 16 <= len(found.trained) <= 400
    true = float(np.mean(build(task, tiny, range(400))["prompt_tokens"].to_numpy()))
    assert found.total(found.prompts) == pytest.approx(true * task.rows, rel=0.02)
    again = measure(task, task.context(token_counter(tiny)), task.rows, counted)
    assert found.prompts.tolist() == again.prompts.tolist()


def planned_and_read(file: str, scale: str | None) -> dict[str, tuple[Artefact, int, int]]:
    """Return, by mixture, the planned finetune and the rows and tokens that it would read."""
    planned, base = run.prepare(file, scale=scale)
    data = {artefact.id: artefact for artefact in planned.artefacts if artefact.kind == "dataset"}
    found = {}
    for artefact in planned.artefacts:
        if isinstance(artefact.params, FinetuneJob) and artefact.labels["seed"] == 0:

            def read(name: str) -> object:
                task = data[name].params
                assert isinstance(task, Task)
                return build(task, base, range(data[name].rows))

            facts = select(artefact.params, base, read).measurements()
            tokens = round(artefact.params.finetune.epochs * facts["tokens_per_epoch"])
            found[str(artefact.labels["mixture"])] = (artefact, facts["rows_per_epoch"], tokens)
    return found


@pytest.mark.parametrize("file", ["sweeps/paper/flenqa-mistral.yaml", "sweeps/open/multi-subkey-mistral.yaml"])
def test_a_small_sweep_is_planned_about_as_it_is_trained(file: str) -> None:
    found = planned_and_read(file, "small")
    assert found
    for artefact, rows, tokens in found.values():
        exact = artefact.counted == "rows"
        assert artefact.rows == pytest.approx(rows, rel=0 if exact else 0.03)
        assert artefact.tokens == pytest.approx(tokens, rel=0 if exact else 0.03)


@pytest.mark.slow
def test_the_quickstart_is_planned_as_it_is_trained_to_three_percent() -> None:
    found = planned_and_read("sweeps/quickstart.yaml", None)
    assert set(found) == {"kv-template", "multidoc_qa", "in2", "needle"}
    for artefact, rows, tokens in found.values():
        assert artefact.counted == "sample"
        assert artefact.rows == pytest.approx(rows, rel=0.03)
        assert artefact.tokens == pytest.approx(tokens, rel=0.03)


def test_a_model_without_a_chat_template_is_refused(tiny: BaseModelRef, tmp_path: Path) -> None:
    shutil.copytree(tiny.location, tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="has no chat template"):
        counting(resolve(str(tmp_path / "m")))
    file = tmp_path / "s.yaml"
    file.write_text(f"name: s\nbase_model: {tmp_path}/m\nevaluate: {{b: {{task: lm_eval, benchmark: gsm8k}}}}\n")
    assert len(run.prepare(str(file))[0].artefacts) == 1
    asked = ["evaluate.recall={task: recall}"]
    with pytest.raises(InputError, match=r"s.yaml:2: base_model: the tokenizer of .* has no chat template"):
        run.prepare(str(file), asked)
    config = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    assert counting(resolve(str(tmp_path / "m"))) is not None
