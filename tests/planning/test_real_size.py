"""The sweeps of sweeps/paper and sweeps/open at real size, by Mistral's own tokenizer: no mixture falls short.

Stand-ins of the same lengths take the place of what the hub has: questions with gold passages of 78 words on average
(lost-in-the-middle's), instruction rows of 4K to 8K tokens, essays. Whatever a writer's model would add is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvray.errors import SourceUnreachableError
from kvray.models.reference import BaseModelRef, resolve
from kvray.planning import inputs
from kvray.planning.artefacts import FinetuneJob, Plan
from kvray.planning.inputs import gather
from kvray.planning.plan import plan
from kvray.sweep.load import load
from kvray.tasks.base import Task

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("paper", "open")
    for path in (ROOT / "sweeps" / folder).glob("*.yaml")
)
QUESTIONS = 2655  # of lost-in-the-middle's file
WORDS = """the a of in and was is to by for with from on at as it that his her its which after before city year river
state president season album character episode government century population character league championship television
university constitution American British national Philadelphia Washington Shakespeare 1994 2017 1863""".split()


def sentences(rng: np.random.Generator, words: int) -> str:
    """Return about so many words in sentences of twelve."""
    drawn = rng.choice(WORDS, max(12, words)).tolist()
    return " ".join(" ".join(drawn[at : at + 12]).capitalize() + "." for at in range(0, len(drawn), 12))


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with questions, instruction rows and essays."""
    folder, rng = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    with (folder / "nq.jsonl").open("w") as file:
        for number in range(QUESTIONS):
            text = f"{sentences(rng, int(rng.normal(78, 25)))} It has the number {number} and no other."
            passage = {"title": f"Article {number}", "text": text, "hasanswer": True, "isgold": True}
            row = {"question": f"who has the number {number}", "answers": [f"number {number}"], "ctxs": [passage]}
            file.write(json.dumps(row) + "\n")
    with (folder / "multidoc.jsonl").open("w") as file:
        for number in range(500):
            context = f"Row {number}. {sentences(rng, int(rng.integers(2000, 4000)))}"
            file.write(json.dumps({"context": context, "questions": ["What is said?"], "answers": ["Much."]}) + "\n")
    (folder / "essays.txt").write_text("\n\n".join(sentences(rng, 1500) for _ in range(40)))
    return folder


@pytest.fixture(autouse=True)
def at_hand(monkeypatch: pytest.MonkeyPatch, stand_ins: Path, mistral_model: Path) -> Iterator[None]:
    """Sources and base model are here; the hub, which has FLenQA and the writers, does not answer."""

    def local(name: str, tokenizer: str | None = None) -> BaseModelRef:
        if name == str(mistral_model):
            return resolve(name)
        if "/" in name:
            raise SourceUnreachableError(f"base_model: the hub does not answer for {name}")
        return resolve(name, tokenizer and str(mistral_model))

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(inputs, "resolve", local)
    for name, file in {"NQ_OPEN": "nq.jsonl", "MULTIDOC": "multidoc.jsonl", "ESSAYS": "essays.txt"}.items():
        monkeypatch.setenv(name, str(stand_ins / file))
    yield


def planned(name: str, base: Path) -> Plan:
    """Plan a sweep by Mistral, of the finetunes' seeds the first alone: the others' data are of the same law."""
    first = ["finetune.seeds=[0]"]
    sweep = load(name, first if "gpt" in name else [*first, f"base_model={base}"])
    return plan(sweep, gather(sweep, offline=True))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_mixture_reaches_its_budget(name: str, mistral_model: Path) -> None:
    found = planned(name, mistral_model)
    written = {each.id for each in found.artefacts if isinstance(each.params, Task) and each.params.writer()}
    tokens = {}
    for artefact in found.artefacts:
        if isinstance(artefact.params, FinetuneJob):
            tokens[artefact.id] = artefact.tokens / artefact.params.finetune.epochs
            # What a model writes is not counted.
            assert artefact.counted != "estimate" or written & set(artefact.needs), artefact.id
    for artefact in found.artefacts:
        job = artefact.params
        if isinstance(job, FinetuneJob) and job.budget:
            first = next(
                each.id
                for each in found.artefacts
                if isinstance(each.params, FinetuneJob)
                and each.params.mixture == job.budget
                and each.params.finetune.epochs == job.finetune.epochs
            )
            assert tokens[artefact.id] == pytest.approx(tokens[first], rel=0.03), artefact.labels
