"""Which differences a planned sweep can find: by its questions, its seeds, and how far seeds lie apart."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from kvray.planning.artefacts import Plan, PredictionsJob
from kvray.planning.cost.spread import spread_of_seeds
from kvray.results.crossed import detectable
from kvray.results.stats import detectable_difference
from kvray.store.store import Store

MOST_POINTS = 30
"""Smallest detectable difference above which an evaluation is of no use: the paper's largest gains are about this."""
GOOD_POINTS = 10
SPREAD = 0.05
"""Standard deviation of accuracy between seeds where the store has none to measure: the least that a mixture of the
quickstart showed on 20 documents (5 to 16 points over three seeds, docs/LOG.md, 2026-11-21)."""
WANTED_POINTS = (5, 2)
"""Differences for which the plan says how many seeds find them."""
MOST_SEEDS = 50
DISCORDANT = 0.2  # share of questions that two models answer differently, assumed before anything is asked


def smallest(planned: Plan, store: Store) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return how many comparisons a report corrects for, and what each evaluation can detect.

    By evaluation: questions; seeds (the fewest of a model); points, the smallest difference from the base that is found
    (of mixtures; with one seed, of its finetune alone); spread of the seeds in points, and whether it was "measured" in
    the store or is the "default"; seeds_for, by wanted points, the number of seeds that find them, null if above 50.
    """
    questions: dict[str, int] = {}
    compared: dict[str, dict[tuple[Any, Any], set[Any]]] = {}  # seeds of each model that meets the base, by evaluation
    for artefact in planned.artefacts:
        job, labels = artefact.params, artefact.labels
        if isinstance(job, PredictionsJob) and artefact.rows:
            questions[str(labels["evaluation"])] = job.task.distinct_questions(artefact.rows)
        if isinstance(job, PredictionsJob) and labels["mixture"] is not None:
            models = compared.setdefault(str(labels["evaluation"]), {})
            models.setdefault((labels["mixture"], labels["finetune"]), set()).add(labels["seed"])
    comparisons = max(1, sum(map(len, compared.values())))
    measured = spread_of_seeds(store, planned.base_model, planned.sweep.finetune.method)
    found: dict[str, dict[str, Any]] = {}
    for name, number in questions.items():
        seeds = min(map(len, compared.get(name, {}).values()), default=0)
        spread = measured.get(name, measured.get("", SPREAD))
        least = _smallest(number, spread, seeds, comparisons) if seeds > 1 else None
        points = detectable_difference(number, DISCORDANT, comparisons=comparisons) if least is None else least
        found[name] = {"questions": number, "seeds": seeds, "points": round(100 * points, 1)}
        found[name] |= {"spread": round(100 * spread, 1), "spread_basis": "measured" if measured else "default"}
        found[name]["seeds_for"] = {
            str(wanted): _seeds_for(wanted, number, spread, comparisons) for wanted in WANTED_POINTS
        }
    return comparisons, found


def _seeds_for(points: float, questions: int, spread: float, comparisons: int) -> int | None:
    """Return the fewest seeds that find a difference of so many points."""
    numbers = range(2, MOST_SEEDS + 1)
    place = bisect_left(numbers, -points, key=lambda seeds: -100 * _smallest(questions, spread, seeds, comparisons))
    return numbers[place] if place < len(numbers) else None


@lru_cache(maxsize=4096)
def _smallest(questions: int, spread: float, seeds: int, comparisons: int) -> float:
    """Return the smallest difference of a mixture from the base that is found with so many questions and seeds."""
    return detectable((DISCORDANT / questions) ** 0.5, spread / seeds**0.5, seeds, comparisons)


def too_few_questions(smallest: Mapping[str, Mapping[str, Any]], comparisons: int) -> Iterator[str]:
    """Yield which evaluations ask so few questions that hardly any finetune could be told apart from the base model."""
    for name, each in smallest.items():
        points = 100 * detectable_difference(int(each["questions"]), DISCORDANT, comparisons=comparisons)
        if points > MOST_POINTS:
            yield (
                f"evaluate.{name}: {each['questions']:g} questions find a difference of {points:.4g} points at "
                f"least, however many seeds; ask {_enough_questions(comparisons):,} to find one of {GOOD_POINTS} "
                "(questions or rows, where the task counts these)"
            )


def _enough_questions(comparisons: int) -> int:
    """Return about how many questions find a difference of :data:`GOOD_POINTS`, rounded up to two digits."""
    questions = 10
    while 100 * detectable_difference(questions, comparisons=comparisons) > GOOD_POINTS:
        questions += int(10 ** (len(str(questions)) - 2))
    return questions
