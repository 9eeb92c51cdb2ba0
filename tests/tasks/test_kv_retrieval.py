"""Key-value retrieval: lost-in-the-middle's prompt and rule, its published rows rearranged, and rows drawn alike."""

from __future__ import annotations

import gzip
import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kvray.errors import InputError, InvalidValueError
from kvray.models.reference import resolve
from kvray.models.tokenizer import token_counter
from kvray.store.schemas import EXAMPLE_SCHEMA
from kvray.tasks.kv.retrieval import KVRetrieval
from kvray.tasks.rng import uuids

GOLDEN = {
    "drawn": "c8c19a0ce42375eb0ad763d182400523244bb87d62cf37fc022851009a52fcac",
    "file": "0e75c60e38df0aaaefa0202a30a64c05d319a2c714febff0b50603b5ae927a90",
}


def count_words(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts], dtype=np.int64)


def rows(task: KVRetrieval) -> list[dict]:
    context = task.context(count_words)
    return task.build(0, task.count(context), context).to_pylist()


def published(path: Path, count: int = 6, keys: int = 4) -> str:
    """Write rows with the fields of the published files; the asked record is the second."""
    lines = []
    for n in range(count):
        records = [[f"k{n}-{at}", f"V{n}-{at}"] for at in range(keys)]
        lines.append(json.dumps({"ordered_kv_records": records, "key": records[1][0], "value": records[1][1]}))
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return str(path)


def test_the_prompt_is_lost_in_the_middles_to_the_letter(tmp_path: Path) -> None:
    task = KVRetrieval(source=published(tmp_path / "kv.jsonl.gz", 1), keys=4, positions=[1, 2, 4], questions=1)
    first, second, last = rows(task)
    assert first["prompt"] == (
        "Extract the value corresponding to the specified key in the JSON object below.\n"
        "\n"
        "JSON data:\n"
        '{"k0-1": "V0-1",\n'
        ' "k0-0": "V0-0",\n'
        ' "k0-2": "V0-2",\n'
        ' "k0-3": "V0-3"}\n'
        "\n"
        'Key: "k0-1"\n'
        "Corresponding value:"
    )
    assert list(json.loads(second["prompt"].split("data:\n")[1].split("\n\nKey")[0])) == [
        "k0-0",
        "k0-1",
        "k0-2",
        "k0-3",
    ]
    assert list(json.loads(last["prompt"].split("data:\n")[1].split("\n\nKey")[0])) == ["k0-0", "k0-2", "k0-3", "k0-1"]
    assert first["answer"] == "V0-1" and first["references"] == ["V0-1"]


def test_a_query_aware_prompt_names_the_key_first_as_lost_in_the_middle_does(tmp_path: Path) -> None:
    source = published(tmp_path / "kv.jsonl", 1, 3)
    plain, aware = (
        rows(KVRetrieval(source=source, keys=3, positions=[1], questions=1, query_aware=aware))[0]
        for aware in (False, True)
    )
    assert aware["prompt"] == (
        "Extract the value corresponding to the specified key in the JSON object below.\n"
        "\n"
        'Key: "k0-1"\n'
        "\n"
        "JSON data:\n"
        '{"k0-1": "V0-1",\n'
        ' "k0-0": "V0-0",\n'
        ' "k0-2": "V0-2"}\n'
        "\n"
        'Key: "k0-1"\n'
        "Corresponding value:"
    )
    assert {**aware, "prompt": "", "prompt_tokens": 0} == {**plain, "prompt": "", "prompt_tokens": 0}


def test_questions_pair_over_positions_and_only_the_asked_record_moves() -> None:
    made = rows(KVRetrieval(keys=8, questions=5))
    assert [row["position"] for row in made[:5]] == [1, 2, 4, 6, 8] and len(made) == 25
    assert len({row["example_id"] for row in made}) == 25
    for n in range(5):
        of_question = made[5 * n : 5 * n + 5]
        assert len({row["question_id"] for row in of_question}) == 1
        others = []
        for row in of_question:
            listed = list(json.loads(row["prompt"].split("data:\n")[1].split("\n\nKey")[0]).items())
            gold = listed.pop(row["position"] - 1)
            assert gold == (row["prompt"].split('Key: "')[1].split('"')[0], row["answer"])
            assert len(listed) == 7 and row["units"] == 8
            others.append(listed)
        assert all(other == others[0] for other in others)


def test_drawn_keys_and_values_are_all_different_random_uuids() -> None:
    made = rows(KVRetrieval(keys=75, positions=[1], questions=40))
    texts = [
        text
        for row in made
        for pair in json.loads(row["prompt"].split("data:\n")[1].split("\n\nKey")[0]).items()
        for text in pair
    ]
    assert len(set(texts)) == len(texts) == 40 * 75 * 2
    read = [uuid.UUID(text) for text in texts]
    assert all(str(one) == text for one, text in zip(read, texts, strict=True))
    assert {one.version for one in read} == {4} and {one.variant for one in read} == {uuid.RFC_4122}
    counts = np.unique([int(text[0], 16) for text in texts], return_counts=True)[1]
    assert len(counts) == 16 and counts.min() > 300, "375 of each first digit are expected"


def test_the_bits_of_a_uuid_come_from_its_words() -> None:
    ones = uuids(np.array([[2**64 - 1, 2**64 - 1], [0, 0]], np.uint64))
    assert ones == ["ffffffff-ffff-4fff-bfff-ffffffffffff", "00000000-0000-4000-8000-000000000000"]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("V0-1", 1.0),
        ('"v0-1"}', 1.0),
        ("I looked it up.\n\nThe value is V0-1.", 1.0),
        ("V0-2, V0-1", 1.0),
        ("V0 -1", 0.0),
        ("", 0.0),
    ],
)
def test_the_value_must_be_contained_in_the_answer_in_any_case(answer: str, score: float) -> None:
    assert KVRetrieval().score(answer, ["V0-1"]) == score
    assert KVRetrieval().outcome(answer, ["V0-1"]) == ("right" if score else "wrong")


def test_a_row_is_a_pure_function_of_recipe_and_index(tmp_path: Path) -> None:
    for source in ("tiny", published(tmp_path / "kv.jsonl")):
        task = KVRetrieval(source=source, keys=4, positions=[1, 4], questions=6)
        context = task.context(count_words)
        whole = task.build(0, 12, context)
        assert whole.schema.equals(EXAMPLE_SCHEMA)
        assert pa.concat_tables([task.build(a, b, context) for a, b in ((0, 1), (1, 8), (8, 12))]).equals(whole)
        fewer = KVRetrieval(source=source, keys=4, positions=[4], questions=3)
        assert rows(fewer) == whole.to_pylist()[1:6:2]
        assert rows(task.model_copy(update={"seed": 1})) != whole.to_pylist()


def test_the_order_of_a_files_rows_does_not_matter(tmp_path: Path) -> None:
    one = published(tmp_path / "one.jsonl")
    (tmp_path / "two.jsonl").write_text("\n".join(reversed(Path(one).read_text().split("\n"))))
    first, second = (KVRetrieval(source=str(tmp_path / f"{n}.jsonl"), keys=4, questions=4) for n in ("one", "two"))
    assert rows(first) == rows(second)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"key": "a", "value": "b"}, "row 1: expected 'ordered_kv_records'.*found the fields key, value"),
        ({"ordered_kv_records": [["a", "b"], ["c"]], "key": "a", "value": "b"}, "list of pairs of texts"),
        ({"ordered_kv_records": [["a", "b"], ["c", 4]], "key": "a", "value": "b"}, "list of pairs of texts"),
        ({"ordered_kv_records": [["a", "b"], ["c", "d"]], "key": "a"}, "list of pairs of texts"),
        ({"ordered_kv_records": [["a", "b"], ["c", "d"]], "key": "a", "value": "d"}, "with its 'value'; found 'a'"),
        ({"ordered_kv_records": [["a", "b"], ["a", "d"]], "key": "a", "value": "d"}, "different keys"),
        ({"ordered_kv_records": [["a", "b"]], "key": "a", "value": "b"}, "found 1 records, expected 2; type keys: 1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: dict, message: str) -> None:
    (tmp_path / "kv.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=message):
        KVRetrieval(source=str(tmp_path / "kv.jsonl"), keys=2, questions=1).context(count_words)


def test_what_a_file_has_not_is_refused(tmp_path: Path) -> None:
    source = published(tmp_path / "kv.jsonl")
    with pytest.raises(InputError, match="type questions: 6"):
        KVRetrieval(source=source, keys=4).context(count_words)
    with pytest.raises(InputError, match="type keys: 4"):
        KVRetrieval(source=source, questions=6).context(count_words)
    with pytest.raises(InputError, match="cannot be read"):
        KVRetrieval(source=str(tmp_path / "none.jsonl")).sources()
    with pytest.raises(InvalidValueError, match=r"found \[5\], expected 1 to keys \(4\)"):
        KVRetrieval(keys=4, positions=5)
    with pytest.raises(InvalidValueError, match="each once"):
        KVRetrieval(positions="3,3")


def test_published_sizes_have_five_spread_positions() -> None:
    assert KVRetrieval().gold_positions() == (1, 19, 38, 56, 75)
    assert KVRetrieval().expected_rows() == 2500 and KVRetrieval(positions="1,75").gold_positions() == (1, 75)
    assert KVRetrieval(keys=2).gold_positions() == (1, 2)
    assert KVRetrieval().with_rows(7).expected_rows() == 10


def test_rows_that_were_trained_on_are_not_evaluated(tmp_path: Path) -> None:
    file = KVRetrieval(source=published(tmp_path / "kv.jsonl"), keys=4, questions=2)
    assert "one file" in str(file.overlaps(file.model_copy(update={"seed": 3, "positions": (2,)})))
    assert file.overlaps(KVRetrieval()) is None and KVRetrieval(seed=1).overlaps(KVRetrieval()) is None
    assert "seed" in str(KVRetrieval(positions=[1]).overlaps(KVRetrieval()))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_bytes(name: str, tmp_path: Path) -> None:
    # Whoever changes these changes every dataset made so far: raise the task's VERSION.
    source = published(tmp_path / "kv.jsonl") if name == "file" else "tiny"
    task = KVRetrieval(source=source, keys=4, questions=6)
    context = task.context(token_counter(resolve("kvray-tiny")))
    made = json.dumps(task.build(0, task.count(context), context).to_pylist())
    assert hashlib.sha256(made.encode()).hexdigest() == GOLDEN[name]
