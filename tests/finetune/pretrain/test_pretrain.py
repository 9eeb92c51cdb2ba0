"""Pretraining: what is counted in the loss, stages that only move on, and a resume that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvray.errors import InputError
from kvray.finetune.pretrain.card import answers, examples, score, write_card
from kvray.finetune.pretrain.curriculum import Curriculum, Stage, advance
from kvray.finetune.pretrain.pretrain import Recipe, pretrain
from kvray.models import reference
from kvray.tasks import world

SMALL = Recipe(tokens=8 * 1024, batch_tokens=1024, layers=1, width=32, heads=1, intermediate=64, warmup=2)
TASKS = Stage("tasks", alphabet=544, numbers=9900, units=6, long_units=24)


@pytest.fixture(scope="module")
def curriculum() -> Curriculum:
    return Curriculum(reference.load_tokenizer(reference.resolve("kvray-tiny")), seed=3)


def test_a_value_counts_only_once_its_key_has_been_seen(curriculum: Curriculum) -> None:
    ids, weights = curriculum.recall_table(Stage(), 128)
    seen: dict[int, int] = {}
    for key, value, weight in zip(ids[::2], ids[1::2], weights[1::2], strict=True):
        assert weight == (1.0 if key in seen else 0.0)
        assert seen.setdefault(key, value) == value, "one key has one value"
    assert set(ids) <= set(curriculum.symbols[:48].tolist())


def test_what_is_counted_of_a_conversation_is_its_answers(curriculum: Curriculum) -> None:
    tokenizer = reference.load_tokenizer(reference.resolve("kvray-tiny"))
    ids, weights = curriculum.documents(3)
    text = tokenizer.decode(ids)
    counted = tokenizer.decode([token for token, weight in zip(ids, weights, strict=True) if weight > 0])
    for sentence in counted.removesuffix("</s>").split("</s>"):
        assert sentence in text.split("Question:")[0], "every answer restates a sentence of the documents"
    values = [tokenizer.decode([token]).strip() for token, weight in zip(ids, weights, strict=True) if weight == 1]
    assert values and all(any(value in of for of in world.RELATIONS.values()) for value in values)


def test_no_name_of_an_evaluation_is_ever_trained_on(curriculum: Curriculum) -> None:
    tokenizer = reference.load_tokenizer(reference.resolve("kvray-tiny"))
    test = {world.name_of("test", person) for person in range(world.group_size("test"))}
    text = " ".join(tokenizer.decode(curriculum.documents(8)[0]) for _ in range(60))
    shown = {" ".join(pair) for pair in zip(text.split(), text.split()[1:], strict=False)}
    assert shown & {world.name_of("train", person) for person in range(world.group_size("train"))}
    assert not shown & test


def test_batches_have_the_promised_shape_and_both_kinds(curriculum: Curriculum) -> None:
    ids, weights, kinds = curriculum.batch(TASKS, 8192)
    assert ids.shape == weights.shape and ids.size <= 8192 and len(kinds) == len(ids)
    assert set(np.unique(kinds)) <= {0, 1} and (weights > 0).any(axis=1).all()


def test_stages_only_move_on() -> None:
    assert advance(Stage(), 0.5, 0.0, 544) == Stage()
    assert advance(Stage(), 0.9, 0.0, 544).name == "widening"
    assert advance(Stage("widening", 544), 0.7, 0.0, 544).name == "widening"
    assert advance(Stage("widening", 544), 0.9, 0.0, 544).name == "tasks"
    grown = advance(TASKS, 0.0, 0.9, 544)
    assert grown.units > TASKS.units and grown.name == "tasks"


def test_a_run_in_two_parts_ends_with_the_same_weights(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    pretrain(tmp_path / "whole", SMALL, "cpu", threads=1)
    pretrain(tmp_path / "parts", SMALL, "cpu", stop_after=3, threads=1)
    record = pretrain(tmp_path / "parts", SMALL, "cpu", threads=1)
    assert record["step"] == 8
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(InputError, match="another recipe"):
        pretrain(tmp_path / "parts", Recipe(tokens=2048, layers=1, width=32, heads=1), "cpu")
    with pytest.raises(InputError, match="head size must be 32"):
        pretrain(tmp_path / "odd", Recipe(width=64, heads=1), "cpu")


def test_the_bundled_model_knows_its_facts_and_answers_from_few_documents() -> None:
    # What its card promises, on a sample: >= 80 % of the facts, >= 70 % from 4 documents, visibly worse at 20.
    from transformers import AutoModelForCausalLM

    from kvray.tasks.qa.mdqa import Mdqa
    from kvray.tasks.qa.recall import Recall

    ref = reference.resolve("kvray-tiny")
    model = AutoModelForCausalLM.from_pretrained(ref.location).eval()
    tokenizer = reference.load_tokenizer(ref)

    def accuracy(task: Mdqa | Recall) -> float:
        table = examples(task, tokenizer)
        return float(score(task, table, answers(model, tokenizer, table["prompt"].to_pylist())).mean())

    few = accuracy(Mdqa(documents=4, questions=25, seed=11))
    assert accuracy(Recall(questions=100)) >= 0.8
    assert few >= 0.7
    assert accuracy(Mdqa(documents=20, questions=12, seed=11)) < few - 0.1


@pytest.mark.slow
def test_a_card_reports_what_was_measured(tmp_path: Path) -> None:
    record = pretrain(tmp_path / "model", SMALL, "cpu", threads=1)
    card = write_card(tmp_path / "model", SMALL, record)
    assert "| closed book, 480 facts | 480 | 0.0" in card, "an untrained model knows nothing"
    assert (tmp_path / "model" / "README.md").read_text() == card
