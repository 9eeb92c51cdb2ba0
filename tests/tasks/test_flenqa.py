"""FLenQA: prompts and scorer to the letter, the published rows, and the columns of its examples."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvray.errors import InputError, InvalidValueError
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.flenqa.flenqa import Flenqa
from kvray.tasks.flenqa.published import prompt, verdict
from kvray.tasks.kv.subkeys import MultiSubkeyKV

FIELDS = {"text": "First.\nSecond {x}.", "question": "Is it so?", "rule": "If a then b."}
# Written out by hand from the authors' notebook.
PROMPTS = {
    ("PIR", False): "First.\nSecond {x}.\nTrue/False Question: Is it so?\nAnswer only True or False.\n",
    ("MonoRel", False): (
        "Here are some facts. Answer the exact following question based on the text: Is it so? Answer the question as "
        "it appears exactly.\nFirst.\nSecond {x}.\nIs it so?\nAnswer only True or False.\n"
    ),
    ("RuleTaker", False): (
        "Answer whether the statement Is it so? can be derived from the rule and the facts. Answer with either "
        '"True" or "False".\nRule: If a then b.\nFacts: First.\nSecond {x}.\nAnswer with either "True or "False".\n'
    ),
    ("PIR", True): (
        "Show your steps then answer with \u2019true\u2019 or \u2019false\u2019.\nFirst.\nSecond {x}.\n"
        "True/False Question: Is it so?\nLet\u2019s work this out in a step by step way to\n"
        "be sure we have the right answer.\n"
    ),
    ("MonoRel", True): (
        "Here are some facts. Answer the exact following question based on the text: Is it so? Answer the question as "
        "it appears exactly.\nShow your steps then answer with \u2019true\u2019 or \u2019false\u2019.\n"
        "First.\nSecond {x}.\nIs it so?\n"
        "Let\u2019s work this out in a step by step way to be sure we have the right answer. Show your work and "
        "finally answer with \u2019true\u2019 or \u2019false\u2019. The final step should include the exact text of "
        "the question and the answer.\n"
    ),
    ("RuleTaker", True): (
        "Answer whether the statement Is it so? can be derived from the rule and the facts.\n"
        'Show your steps then answer with either "True" or "False".\nRule: If a then b.\nFacts: First.\nSecond {x}.\n'
        'Answer with either "True or "False". Let\'s work this out in a step by step way to be sure we have the right '
        "answer.\n"
    ),
}


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Flenqa, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
    context = task.context(count_words)
    return task.build(start, task.count(context) if stop is None else stop, context).to_pylist()


@pytest.mark.parametrize(("subtask", "cot"), sorted(PROMPTS))
def test_prompts_are_the_authors_to_the_letter(subtask: Any, cot: bool) -> None:
    assert prompt(subtask, cot, **FIELDS) == PROMPTS[subtask, cot]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("True", "true"),
        ("False.", "false"),
        ("**TRUE**!", "true"),
        ("“false”", "false"),
        ("It is not true.", "false"),
        ("NOT TRUE", "false"),
        ("That is not\n true", "false"),
        ("This is not a true statement.", "false"),
        ("It is not the case, so true", "true"),
        ("It is not false", "false"),
        ("True? No: False", "false"),
        ("False at first, yet it is True.", "true"),
        ("True, false, true, false", "false"),
        ("A is older than B.\nB is older than C.\nSo the answer is \u2019true\u2019.", "true"),
        ("It could be true, but the last step shows that it is false", "false"),
        ("False. In fact it is not true", "false"),
        ("untrue", "true"),
        ("truefalse", "false"),
        ("Yes", "other"),
        ("I cannot say.", "other"),
        ("tru", "other"),
        ("", "other"),
    ],
)
def test_the_last_true_or_false_is_the_answer(answer: str, said: str) -> None:
    task = Flenqa()
    assert verdict(answer) == said
    for label in ("True", "False"):
        right = said == label.lower()
        assert task.score(answer, [label]) == float(right)
        assert task.outcome(answer, [label]) == ("right" if right else "other" if said == "other" else "wrong")


@pytest.mark.parametrize(
    ("answer", "coverage", "early"),
    [
        ("Ann is older than Bo.\nBo is older than Cy.\nSo Ann is older than Cy. True", 1.0, False),
        ("ANN  is older than\nBo. Therefore true.", 0.5, False),
        ("True. Ann is older than Bo. Bo is older than Cy.", 1.0, True),
        ("The answer is true", 0.0, False),
        ("So false", 0.0, True),
        ("The true one: Bo is older than Cy. So it is true.", 0.5, True),
        ("True or not, in the end it is false", 0.0, False),
        ("It is not true", 0.0, False),
        ("I cannot say", 0.0, False),
    ],
)
def test_coverage_and_early_responses_are_those_of_the_notebook(answer: str, coverage: float, early: bool) -> None:
    worked = "Ann is older than Bo.\nBo is older than Cy.\nSo Ann is older than Cy.\nIs Ann older than Cy? True"
    assert Flenqa(cot=True).reasoning(answer, worked) == (coverage, early)
    assert Flenqa().reasoning(answer, worked) is None
    assert MultiSubkeyKV().reasoning(answer, worked) is None


def test_our_own_worked_answers_cover_their_facts_and_conclude_last() -> None:
    task = Flenqa(cot=True, questions=4, lengths=250, paddings="books")
    for row in rows(task):
        assert task.reasoning(row["answer"], row["answer"]) == (1.0, False)
        for fact in row["answer"].split("\n")[:2]:
            assert fact in row["prompt"]


@pytest.mark.parametrize("cot", [False, True])
def test_every_answer_of_ours_is_right_and_ends_in_the_label(cot: bool) -> None:
    task = Flenqa(cot=cot, questions=6, lengths=250, paddings="books")
    made = rows(task)
    assert len(made) == 18 == task.expected_rows()
    for row in made:
        assert task.outcome(row["answer"], row["references"]) == "right"
        assert row["answer"].endswith(row["references"][0])
        assert ("\n" in row["answer"]) == cot


def test_direct_and_chain_of_thought_ask_the_same_questions_over_the_same_texts() -> None:
    direct, worked = (rows(Flenqa(cot=cot, questions=2, lengths=[250, 400])) for cot in (False, True))
    for one, other in zip(direct, worked, strict=True):
        assert one["example_id"] == other["example_id"] and one["references"] == other["references"]
        text = one["prompt"].removesuffix("\nAnswer only True or False.\n").removesuffix("\n")
        if one["subtask"] == "PIR":
            assert text in other["prompt"]


def test_every_base_instance_is_asked_once_under_every_condition() -> None:
    task = Flenqa(questions=4, lengths=[250, 300], dispersions=["first", "random"], paddings=["same", "identity"])
    table = task.build(0, 96, task.context(count_words))
    assert table.schema.equals(EXAMPLE_SCHEMA)
    made = table.to_pylist()
    assert len({row["example_id"] for row in made}) == 96 == task.expected_rows()
    assert task.distinct_questions(96) == len({row["question_id"] for row in made}) == 12
    for name in {row["question_id"] for row in made}:
        of_it = [row for row in made if row["question_id"] == name]
        assert {(row["condition"], row["length"]) for row in of_it} == {
            (f"dispersion={dispersion} padding={padding}", length)
            for dispersion in ("first", "random")
            for padding in ("same", "identity")
            for length in (250, 300)
        }
        assert len({row["references"][0] for row in of_it}) == 1
        assert len({row["subtask"] for row in of_it}) == 1
    for subtask in ("MonoRel", "PIR", "RuleTaker"):
        labels = [row["references"][0] for row in made if row["subtask"] == subtask]
        assert labels.count("True") == labels.count("False") == 16
    assert {row["position"] for row in made} == {None} == {row["depth"] for row in made}


def test_a_row_is_a_pure_function_of_recipe_and_index() -> None:
    task = Flenqa(questions=5, lengths=[260, 700], dispersions=["last", "random"])
    context = task.context(count_words)
    whole = task.build(0, 120, context)
    for cuts in ([0, 1, 3, 4, 61, 120], [0, 7, 50, 119, 120]):
        parts = [task.build(start, stop, task.context(count_words)) for start, stop in itertools.pairwise(cuts)]
        assert pa.concat_tables(parts).equals(whole)
    assert task.with_rows(60).build(0, 60, context).equals(whole.slice(0, 60)), "more instances change no earlier one"
    longer = {row["example_id"]: row for row in rows(task.model_copy(update={"lengths": (260, 700, 1500)}))}
    assert all(longer[row["example_id"]] == row for row in whole.to_pylist()), "more lengths change no other one"
    other = task.model_copy(update={"seed": 1}).build(0, 120, task.model_copy(update={"seed": 1}).context(count_words))
    assert not set(other["prompt"].to_pylist()) & set(whole["prompt"].to_pylist())


def test_golden_bytes() -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    dispersions = ["first", "middle", "last", "random"]
    paddings = ["books", "same", "identity"]
    task = Flenqa(questions=4, lengths=[250, 1000], dispersions=dispersions, paddings=paddings, cot=True)
    context = task.context(token_counter(resolve("kvray-tiny")))
    made = task.build(0, task.count(context), context).to_pylist()
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in made)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "712e0f901c718f1f41279806ef3c01c30dca6e6b561c6f6ed0f663e352634d69"
    )


def published(instances: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """Rows as FLenQA has them: labels as text or boolean, two lengths, two paddings, one dispersion."""
    made = []
    for number in range(instances):
        for name in ("MonoRel", "PIR", "Simplified RuleTaker"):
            for padding in ("same", "books"):
                for size in (250, 500):
                    row = {
                        "global_sample_id": number * 3 + len(name), "sample_id": number, "dataset": name,
                        "label": number % 2 == 0 if name == "PIR" else str(number % 2 == 0),
                        "facts": None if "Rule" in name else [f"{name} {number} one.", f"{name} {number} two."],
                        "rule": f"If {number}." if "Rule" in name else None,
                        "statement": [f"S {number} one.", f"S {number} two."] if "Rule" in name else None,
                        "assertion/question": f"Q {name} {number}.",
                        "mixin": f"T {name} {number} {padding} {size}.\nMore {{braces}}.",
                        "padding_type": padding, "dispersion": "random", "ctx_size": size,
                    }  # fmt: skip
                    made.append({**row, **changes})
    return made


def write(path: Path, made: Sequence[Any]) -> str:
    text = "\n".join(json.dumps(row) for row in made)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            member = "FLenQA/FLenQA.json" if path.stem == "f" else "FLenQA"
            archive.writestr(member, text)
            archive.writestr("__MACOSX/FLenQA/._FLenQA.json", b"\x00\x05")
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([{**row, "label": str(row["label"])} for row in made]), path)  # noqa: TID251
    else:
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


@pytest.mark.parametrize("name", ["f.jsonl", "f.jsonl.gz", "f.zip", "FLenQA.zip", "f.parquet"])
def test_published_rows_are_asked_as_they_are(tmp_path: Path, name: str) -> None:
    task = Flenqa(source=write(tmp_path / name, published()), questions=4, lengths=[500, 250])
    made = rows(task)
    assert len(made) == 4 * 3 * 2 * 2
    asked = {row["example_id"]: row for row in made}
    pir = asked["PIR-6-same-random-500"]
    assert pir["prompt"] == (
        "T PIR 1 same 500.\nMore {braces}.\nTrue/False Question: Q PIR 1.\nAnswer only True or False.\n"
    )
    assert (pir["question_id"], pir["length"], pir["subtask"]) == ("PIR-6", 500, "PIR")
    assert pir["condition"] == "dispersion=random padding=same"
    assert (pir["answer"], pir["references"]) == ("False", ["False"]) and asked["PIR-3-same-random-500"][
        "answer"
    ] == "True"
    rule = asked["RuleTaker-20-books-random-250"]
    assert rule["prompt"] == (
        "Answer whether the statement Q Simplified RuleTaker 0. can be derived from the rule and the facts. "
        'Answer with either "True" or "False".\nRule: If 0.\nFacts: T Simplified RuleTaker 0 books 250.\n'
        'More {braces}.\nAnswer with either "True or "False".\n'
    )
    worked = rows(task.model_copy(update={"cot": True}))
    answers = {row["example_id"]: row["answer"] for row in worked}
    assert answers["RuleTaker-20-books-random-250"] == "S 0 one.\nS 0 two.\nIf 0.\nQ Simplified RuleTaker 0. True"
    assert answers["MonoRel-10-books-random-250"] == "MonoRel 1 one.\nMonoRel 1 two.\nQ MonoRel 1. False"


def test_fewer_published_instances_stay_balanced_and_are_drawn_by_the_seed(tmp_path: Path) -> None:
    source = write(tmp_path / "f.jsonl", published(20))
    chosen = []
    for seed in range(3):
        made = rows(Flenqa(source=source, questions=6, lengths=250, paddings="books", seed=seed))
        for subtask in ("MonoRel", "PIR", "RuleTaker"):
            labels = [row["answer"] for row in made if row["subtask"] == subtask]
            assert labels.count("True") == labels.count("False") == 3
        chosen.append({row["question_id"] for row in made})
    assert chosen[0] != chosen[1] != chosen[2]


def test_identity_is_the_content_not_the_path(tmp_path: Path) -> None:
    first, second = (Flenqa(source=write(tmp_path / name, published())) for name in ("a.jsonl", "b.jsonl"))
    assert first.recipe() == second.recipe() and "source" not in first.recipe()
    assert first.sources() == second.sources() != Flenqa().sources()
    assert first.sources() != Flenqa(source=write(tmp_path / "c.jsonl", published(5))).sources()


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"lengths": [250, 750]},
            "no rows for MonoRel padding=books dispersion=random ctx_size=750 and 5 more; it has",
        ),
        ({"lengths": 3000}, "lengths 250, 500$"),
        ({"dispersions": "middle", "lengths": 250}, "dispersions random"),
        ({"paddings": "identity", "lengths": 250}, "paddings books, same"),
        (
            {"questions": 5, "lengths": 250},
            "5 asked for, but the source has 4 base instances of MonoRel .* questions: 4",
        ),
    ],
)
def test_conditions_that_were_not_published_are_named(tmp_path: Path, knobs: dict[str, Any], message: str) -> None:
    task = Flenqa(source=write(tmp_path / "f.jsonl", published()), **{"questions": 4, **knobs})
    with pytest.raises(InputError, match=message):
        task.context(count_words)


def test_an_instance_that_lacks_a_condition_is_not_asked(tmp_path: Path) -> None:
    made = [row for row in published() if row["sample_id"] != 1 or row["ctx_size"] != 500]
    source = write(tmp_path / "f.jsonl", made)
    ids = {row["question_id"] for row in rows(Flenqa(source=source, questions=3, lengths=[250, 500], tasks="PIR"))}
    assert ids == {"PIR-3", "PIR-9", "PIR-12"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "perhaps"}, "row 1: label: found 'perhaps'; expected True or False"),
        ({"dataset": "SAT"}, "row 1: dataset: found 'SAT'; expected one of MonoRel, PIR, Simplified RuleTaker"),
        ({"mixin": None}, "row 1: 'mixin' and 'assertion/question' must be texts; found None"),
        ({"ctx_size": "long"}, "row 1: ctx_size: found 'long'"),
        ({"global_sample_id": None}, "row 1: no 'global_sample_id'; found the fields"),
        ({"rule": ""}, "no 'rule'"),
        ({"global_sample_id": 7}, "row 13: global_sample_id 7 of MonoRel comes twice"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    source = write(tmp_path / "f.jsonl", published(**change))
    with pytest.raises(InputError, match=message):
        Flenqa(source=source, questions=4, lengths=[250, 500]).context(count_words)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"lengths": []}, "at least one"),
        ({"lengths": [250, 250]}, "each once"),
        ({"lengths": [0]}, "from 1; found 0"),
        ({"tasks": ["Sudoku"]}, "MonoRel"),
        ({"dispersions": "everywhere"}, "'first', 'middle', 'last' or 'random'"),
        ({"padding_source": "x.txt", "paddings": "same"}, "padding_source is used with"),
        ({"padding_source": "x.txt", "source": "f.zip"}, "padding_source is used with"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Flenqa(**knobs)


def test_a_length_below_the_key_paragraphs_is_refused() -> None:
    with pytest.raises(InputError, match=r"lengths: found 5, but .*key paragraphs alone have \d+\); expected at least"):
        rows(Flenqa(lengths=5, questions=1))
