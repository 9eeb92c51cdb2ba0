"""RULER's 13 tasks: wording, what is hidden and asked, lengths by the tokenizer, scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import toy_tokenizers

from kvray.errors import InputError, InvalidValueError
from kvray.models.reference import resolve
from kvray.models.tokenizer import TokenCounter, token_counter
from kvray.store.schemas import PREFIX_SCHEMA
from kvray.tasks.base import CountTokens
from kvray.tasks.ruler import aggregation, retrieval, words
from kvray.tasks.ruler.ruler import Ruler
from kvray.tasks.ruler.subtasks import NAMES, SUBTASKS

GOLDEN = {
    "retrieval": "ba5a776240626238c6c92709e6b7f793de0652e1f8f61b8ad64c876d7b7f6f3d",
    "tracing": "da72c23e0dffcaa1e9fc6748777bd340137c1354932169b3dde88b0a3daa34a5",
    "aggregation": "26d2a6e66322ec090d82721d3144cec9ee5c0a520029daf114f0d5e6488c28fb",
    "qa": "66d4ce398dacecd74ac677786a83eb12c8ae8abfcaa52976ef75ba1f56047cfd",
}
NEEDLE = re.compile(r"One of the special magic (number|uuid)s for (\S+|\S+ \S+|\S+ \S+ \S+) is: (\S+)\.(?=\s|$)")
NIAH = [name for name in NAMES if name.startswith("niah")]
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rain",
            "paragraphs": [
                {
                    "context": f"In year {year} it rained for {year % 7} days.",
                    "qas": [
                        {
                            "question": f"How long did it rain in {year}?",
                            "answers": [{"text": f"{year % 7} days"}, {"text": str(year % 7)}],
                            "is_impossible": False,
                        },
                        {"question": "Did it snow?", "answers": [], "is_impossible": True},
                    ],
                }
                for year in range(2000, 2010)
            ],
        },
        {"title": "Sun", "paragraphs": [{"context": f"Day {day} was sunny.", "qas": []} for day in range(30)]},
    ],
}
HOTPOT = [
    {
        "question": f"Is lake {n} as deep as lake {n + 1}?",
        "answer": "no",
        "context": [[f"Lake {n + k}", [f"Lake {n + k} is {n + k} m deep.", " It is cold."]] for k in range(10)],
    }
    for n in range(12)
]


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: Ruler, count: CountTokens = count_words) -> list[dict]:
    context = task.context(count)
    return task.build(0, task.count(context), context).to_pylist()


def small(name: str, **knobs: object) -> Ruler:
    return Ruler(tasks=name, **{"rows": 3, "lengths": 1200, "template_tokens": 0, **knobs})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(SQUAD))
    (tmp_path / "hotpot.json").write_text(json.dumps(HOTPOT))
    return {"squad": str(tmp_path / "dev-v2.0.json"), "hotpot": str(tmp_path / "hotpot.json")}


def test_one_needle_is_asked_in_rulers_words() -> None:
    (one,) = rows(small("niah_single_1", rows=1, lengths=240))
    found = NEEDLE.search(one["prompt"])
    assert found
    _, key, value = found.groups()
    lines = one["prompt"].split("\n")
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the number afterwards."
    )
    assert lines[-1] == f"What is the special magic number for {key} mentioned in the provided text?"
    assert Counter(lines[1:-1])[retrieval.NOISE] == len(lines) - 3
    assert f"One of the special magic numbers for {key} is: {value}." in lines
    assert one["answer_prefix"] == f"The special magic number for {key} mentioned in the provided text is"
    assert one["answer"] == f"{one['answer_prefix']} {value}."
    assert one["references"] == [value]


def test_several_values_are_asked_in_rulers_words() -> None:
    (one,) = rows(small("niah_multiquery", rows=1))
    assert one["prompt"].startswith(
        "Some special magic numbers are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the numbers afterwards.\n"
    )
    listed = one["answer_prefix"].removeprefix("The special magic numbers for ")
    keys = listed.removesuffix(" mentioned in the provided text are")
    assert len(keys.split(", ")) == 4 and keys.split(", ")[-1].startswith("and ")
    assert one["prompt"].endswith(
        f"\nWhat are all the special magic numbers for {keys} mentioned in the provided text?"
    )
    assert one["answer"].endswith(f" {', '.join(one['references'][:3])}, and {one['references'][3]}.")


@pytest.mark.parametrize("name", NIAH)
def test_needles_are_hidden_and_asked_as_the_table_says(name: str) -> None:
    law = SUBTASKS[name]  # type: ignore[index]
    for row in rows(small(name)):
        found = NEEDLE.findall(row["prompt"])
        named = {key: [value for _, other, value in found if other == key] for _, key, _ in found}
        kinds = {kind for kind, _, _ in found}
        asked = [key for key in named if key in row["answer_prefix"]]
        assert kinds == {law.value} and len(asked) == law.queries
        assert all(len(named[key]) == law.values for key in asked)
        assert sorted(row["references"]) == sorted(value for key in asked for value in named[key])
        if law.haystack != "needles":
            assert len(named) == law.keys
        else:
            assert len(named) == len(found) > 30 and len({value for *_, value in found}) == len(found)
        patterns = {"number": r"[1-9]\d{6}", "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-\w{12}"}
        assert all(re.fullmatch(patterns[law.value], value) for *_, value in found)
        if law.key == "word":
            pairs = {f"{one}-{two}" for one in words.lists()["adjectives"] for two in ("",)}
            assert all(any(key.startswith(pair) for pair in pairs) for key in named)
        else:
            assert all(re.fullmatch(patterns["uuid"], key) for key in named)


def test_values_of_one_key_are_answered_in_the_order_of_the_text() -> None:
    for row in rows(small("niah_multivalue")):
        assert [value for *_, value in NEEDLE.findall(row["prompt"])] == row["references"]


def test_essays_begin_at_their_beginning_and_needles_stand_at_sentence_ends(tmp_path: Path) -> None:
    text = " ".join(f"Sentence {number} of\nthis essay ends here." for number in range(400))
    (tmp_path / "essay.txt").write_text(text)
    made = rows(small("niah_multikey_1", source=str(tmp_path / "essay.txt")))
    for row in made:
        context = row["prompt"].split("\n")[1]
        before = [context[: found.start()].rstrip() for found in NEEDLE.finditer(context)]
        assert all(not text or text.endswith((".", "?")) for text in before)
        bare = NEEDLE.sub("", context).split()
        assert bare == text.split()[: len(bare)] and len(bare) > 900
        assert row["condition"] is None
    (short,) = rows(small("niah_single_2", rows=1, source=str(tmp_path / "essay.txt"), lengths=4000))
    bare = NEEDLE.sub("", short["prompt"].split("\n")[1]).split()
    assert bare[:2800] == text.split() and bare[2800:2805] == text.split()[:5], "a short text comes again"
    assert all(row["condition"] == "text=tiny" for row in rows(small("niah_single_2")))


def test_the_depth_of_one_needle_in_essays_is_one_of_rulers_forty() -> None:
    made = rows(small("niah_single_2", rows=40, lengths=400))
    assert len(retrieval.DEPTHS) == len(set(retrieval.DEPTHS)) == 40 and retrieval.DEPTHS[-1] == 100
    for row in made:
        context = row["prompt"].split("\n")[1]
        sentences = [text for text in re.split(r"(?<=\.) ", NEEDLE.sub("", context).replace("  ", " ").strip()) if text]
        place = len(re.findall(r"\.", context[: NEEDLE.search(context).start()]))  # type: ignore[union-attr]
        assert row["depth"] in retrieval.DEPTHS and place == len(sentences) * int(row["depth"]) // 100


def test_variables_are_tracked_after_a_worked_example() -> None:
    for row in rows(small("vt")):
        prompt = row["prompt"]
        assert prompt.count("Memorize and track the chain(s) of variable assignment hidden in the following text.") == 2
        example, question = prompt.split("\n\n\n\n")
        shown = re.findall(r"VAR ([A-Z]{3}) = (?:VAR ([A-Z]{3}) |\d{5})", example)
        assert example.endswith(f"they are:  {' '.join(name for name, _ in shown)}") and len(shown) == 5
        chain = re.findall(r"VAR ([A-Z]{5}) = (?:VAR ([A-Z]{5}) |(\d{5}))", question)
        names = [name for name, *_ in chain]
        assert [before for _, before, _ in chain] == ["", *names[:-1]], "each has the value of the one before"
        value = chain[0][2]
        assert 10_000 <= int(value) < 99_999 and row["references"] == names and len(set(names)) == 5
        assert question.endswith(
            f"again.\n\nQuestion: Find all variables that are assigned the value {value} in the text above."
        )
        assert row["answer"] == (
            "Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the "
            f"value {value}, they are: {' '.join(names)}"
        )
        assert question.count("The grass is green.") > 30


@pytest.mark.parametrize(("length", "times"), [(1200, {6, 1}), (5000, {30, 3})])
def test_common_words_come_as_often_as_rulers(length: int, times: set[int]) -> None:
    for row in rows(small("cwe", lengths=length, rows=2)):
        example, question = row["prompt"].split("\nBelow")
        for part, wanted in ((example, {3, 1} if length < 4096 else {10, 3}), (question, times)):
            listed = part.split("\n")[1]
            found = re.findall(r"(\d+)\. (.+?)(?= \d+\. |$)", listed)
            assert [int(number) for number, _ in found] == list(range(1, len(found) + 1))
            numbers = Counter(word for _, word in found)
            assert set(numbers.values()) == wanted and set(numbers) <= set(words.every())
            assert list(numbers.values()).count(max(wanted)) == 10
            if part is question:
                assert {word for word, number in numbers.items() if number == max(wanted)} == set(row["references"])
        assert example.count("Answer: The top 10 words that appear most often in the list are: 1. ") == 1
        assert row["prompt"].endswith("\nQuestion: What are the 10 most common words in the above list?")


def test_coded_words_fall_with_the_square_of_their_rank() -> None:
    for row in rows(small("fwe", lengths=[1200, 5000])):
        text = re.search(r"coded words\. (.*)\nQuestion: Do not provide any explanation\. ", row["prompt"], re.DOTALL)
        numbers = Counter(text[1].split())  # type: ignore[index]
        common = [word for word, _ in numbers.most_common(5)]
        assert common[0] == "..." and common[1:4] == row["references"] and numbers[common[3]] > numbers[common[4]]
        assert all(re.fullmatch(r"[a-z]{6}", word) for word in common[1:])
        total = numbers["..."] * np.pi**2 / 6
        for rank, word in enumerate(common, start=1):
            assert abs(numbers[word] - total * 6 / np.pi**2 / rank**2) <= 1
        assert len(numbers) <= row["length"] // 50


def test_the_word_asked_for_is_more_frequent_than_the_next_at_any_size() -> None:
    draft = aggregation.frequent(7, 4000)
    for size in (draft.least, *range(draft.least, 400), 5000):
        numbers = Counter(re.search(r"coded words\. (.*)\nQ", draft.worded(size))[1].split())  # type: ignore[index]
        assert {word for word, _ in numbers.most_common(4)} == {"...", *draft.references}
        assert numbers[draft.references[2]] > max(numbers[word] for word in set(numbers) - {"...", *draft.references})


def test_questions_come_in_the_files_order_with_documents_of_the_same_set(files: dict[str, str]) -> None:
    made = rows(small("qa_1", **files, lengths=400, rows=10))
    assert [row["references"] for row in made] == [[f"{y % 7} days", str(y % 7)] for y in range(2000, 2010)]
    for year, row in enumerate(made, start=2000):
        documents = re.findall(r"Document (\d+):\n(.*)\n\n", row["prompt"])
        texts = [text for _, text in documents]
        assert [int(number) for number, _ in documents] == list(range(1, len(texts) + 1))
        assert f"In year {year} it rained for {year % 7} days." in texts and len(set(texts)) == len(texts) > 20
        assert sum(text.startswith("In year") for text in texts) == 10, "the article's other paragraphs come first"
        assert row["prompt"].endswith(f"\n\nQuestion: How long did it rain in {year}?")
        assert row["answer"] == f"Answer: {year % 7} days" and row["condition"] is None
    several = rows(small("qa_2", **files, lengths=400, rows=12))
    for number, row in enumerate(several):
        gold = {f"Lake {number + k}\nLake {number + k} is {number + k} m deep. It is cold." for k in range(10)}
        texts = set(re.findall(r"Document \d+:\n(Lake .*\n.*)\n\n", row["prompt"]))
        assert gold < texts and row["references"] == ["no"]
    places = [re.search(rf"Document (\d+):\nIn year {year}", row["prompt"])[1] for year, row in enumerate(made, 2000)]  # type: ignore[index]
    assert len(set(places)) > 5, "the gold document stands anywhere"


def test_files_that_are_no_question_sets_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"squad: .*hotpot.json is not like SQuAD's dev-v2.0.json"):
        rows(small("qa_1", squad=files["hotpot"]))
    with pytest.raises(InputError, match=r"hotpot: .*not like HotpotQA's hotpot_dev_distractor_v1.json"):
        rows(small("qa_2", hotpot=files["squad"]))
    with pytest.raises(InputError, match="rows: found 11; expected at most 10: squad has no more"):
        rows(small("qa_1", **files, rows=11))
    (tmp_path / "none.json").write_text(json.dumps({"data": []}))
    with pytest.raises(InputError, match="no question with an answer"):
        rows(small("qa_1", squad=str(tmp_path / "none.json")))


def test_the_tiny_worlds_comparisons_have_one_right_person() -> None:
    for row in rows(small("qa_2", rows=40, lengths=500)):
        asked = re.search(r"Question: Is (.+) the (\w+) of (.+) or of (.+)\?$", row["prompt"])
        assert asked
        value, relation, *pair = asked.groups()
        facts = [f"The {relation} of {name} is {value}." in row["prompt"] for name in pair]
        assert sorted(facts) == [False, True] and pair[facts.index(True)] == row["references"][0]
        assert all(
            f"The {relation} of {name} is" in row["prompt"] or not has for name, has in zip(pair, facts, strict=True)
        )


@pytest.mark.parametrize("kind", ["digits", "threes", "spaced", None])
def test_a_length_includes_prefix_answer_and_template_by_the_tokenizer(kind: str | None) -> None:
    count = TokenCounter(getattr(toy_tokenizers, kind)()) if kind else token_counter(resolve("kvray-tiny"))
    units = {"squad": 60, "hotpot": 60, "needles": 130, "noise": 60, "words": 60, "essays": 30}
    for row in rows(Ruler(lengths=[12_000, 16_000], rows=1), count):
        law = SUBTASKS[row["subtask"]]
        prompt, prefix = count([row["prompt"], f" {row['answer_prefix']}"]).tolist()
        spare = row["length"] - prompt - prefix - law.answer_tokens - 48
        longest = 4 * units[law.haystack] if kind else units[law.haystack]
        assert row["prompt_tokens"] == prompt and 0 <= spare <= row["length"] / 256 + longest, row["subtask"]


def test_a_length_without_room_names_the_task() -> None:
    with pytest.raises(InputError, match=r"lengths: found 0 tokens for a prompt of niah_single_1 of 100 tokens"):
        rows(small("niah_single_1", lengths=100))
    with pytest.raises(InputError, match=r"prompt of cwe of 4096 tokens.*expected \d+ at least"):
        rows(Ruler(tasks="cwe", lengths=4096, rows=1), token_counter(resolve("kvray-tiny")))


def test_a_row_is_a_pure_function_of_recipe_and_index() -> None:
    task = Ruler(lengths=[1200, 2000], rows=2)
    context = task.context(count_words)
    whole = task.build(0, 52, context)
    assert whole.schema.equals(PREFIX_SCHEMA) and task.count(context) == 52 == task.expected_rows()
    assert pa.concat_tables([task.build(a, b, context) for a, b in ((0, 5), (5, 30), (30, 52))]).equals(whole)
    made = whole.to_pylist()
    assert [row["subtask"] for row in made[:13]] == list(NAMES) and [row["length"] for row in made[:26:13]] == [
        1200,
        2000,
    ]
    fewer = rows(Ruler(lengths=2000, rows=1, tasks="vt,qa_1"))
    assert fewer == [row for row in made[:26] if row["length"] == 2000 and row["subtask"] in ("vt", "qa_1")]
    for at in range(26):
        same = [row for row in made if row["question_id"] == made[at]["question_id"]]
        assert len(same) == 2 and len({(row["answer"], row["answer_prefix"], row["depth"]) for row in same}) == 1
    other = rows(task.model_copy(update={"seed": 1}))
    assert all(one["prompt"] != two["prompt"] for one, two in zip(made, other, strict=True))


@pytest.mark.parametrize(
    ("name", "answer", "references", "score", "outcome"),
    [
        ("niah_single_1", " 1234567.", ["1234567"], 1.0, "right"),
        ("niah_single_1", "It is 1,234,567", ["1234567"], 0.0, "wrong"),
        ("niah_multivalue", "first 1234567,\n\nthen 7654321.", ["7654321", "1234567"], 1.0, "right"),
        ("niah_multivalue", "1234567 and 1234567", ["7654321", "1234567"], 0.5, "partial"),
        ("vt", "abcde", ["ABCDE", "FGHIJ", "KLMNO", "PQRST"], 0.25, "partial"),
        ("cwe", "1. Ad Hoc 2. zebra", ["ad hoc", "zebra"], 1.0, "right"),
        ("qa_1", "It was 3 DAYS, I think", ["3 days", "three"], 1.0, "right"),
        ("qa_2", "maybe", ["yes"], 0.0, "wrong"),
    ],
)
def test_answers_are_scored_by_the_rule_of_their_task(
    name: str, answer: str, references: Sequence[str], score: float, outcome: str
) -> None:
    task = Ruler().narrowed(name)
    assert (task.score(answer, references), task.outcome(answer, references)) == (score, outcome)
    assert task.max_output_tokens == SUBTASKS[name].answer_tokens <= Ruler().max_output_tokens == 128  # type: ignore[index]
    assert Ruler().narrowed(None) == Ruler()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": "niah_single_1,niah_single_4"}, "niah_single_1"),
        ({"tasks": []}, "at least one"),
        ({"lengths": "4096,4096"}, "each once"),
        ({"variants": "single"}, "tasks"),
        ({"rows": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_knob_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        Ruler(**wrong)


def test_files_are_read_for_the_tasks_that_need_them_alone(tmp_path: Path) -> None:
    missing = {name: str(tmp_path / "none.json") for name in ("source", "squad", "hotpot")}
    task = Ruler(**missing, tasks="niah_single_1,niah_multikey_3,vt,cwe,fwe", rows=1, lengths=1200)
    assert set(task.sources()) == {"words"} and len(rows(task)) == 5
    assert set(Ruler().sources()) == {"source", "words", "squad", "hotpot"} and Ruler(tasks="vt").sources() == {}
    for name, field in (("niah_single_2", "source"), ("qa_1", "squad"), ("qa_2", "hotpot")):
        with pytest.raises(InputError, match="cannot be read"):
            Ruler(tasks=name, **{field: missing[field]}).context(count_words)


def test_the_same_draws_are_not_trained_on_and_evaluated() -> None:
    task = Ruler(tasks="vt")
    assert "seed" in str(task.overlaps(Ruler(lengths=9000)))
    assert task.overlaps(Ruler(tasks="cwe")) is None and task.overlaps(Ruler(seed=1)) is None
    assert Ruler(tasks="qa_1", rows=501).overlaps(Ruler(tasks="qa_1", seed=1)) is not None
    assert Ruler(tasks="qa_1", seed=1).overlaps(Ruler(tasks="qa_1,vt", rows=500)) is None
    assert Ruler().with_rows(30).expected_rows() == 52 and Ruler().distinct_questions(52) == 13


@pytest.mark.parametrize("category", sorted(GOLDEN))
def test_golden_bytes(category: str) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    names = [name for name in NAMES if SUBTASKS[name].category == category]
    task = Ruler(tasks=names, lengths=[2500, 3000], rows=2)
    made = json.dumps(rows(task, token_counter(resolve("kvray-tiny"))))
    assert hashlib.sha256(made.encode()).hexdigest() == GOLDEN[category]
