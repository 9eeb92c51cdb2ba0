"""How often 95 % intervals over seeds and questions hold the truth, and how often their test errs, by simulation.

    python benchmarks/coverage.py                 # the whole table: about 5 minutes on one core
    python benchmarks/coverage.py --replicates 400

Each replicate is a sweep: questions whose difficulty is normal on the logit scale, a base model that answers each
at some positions with 0 or 1, and finetunes whose true accuracies over all questions are normal, "spread" points apart
(standard deviation), kept between 2 and 98 %. The truth is the difference of the mean accuracies over all seeds and
questions. Beside kvray's interval stands the bootstrap over questions alone that kvray had before.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kvray.results import stats
from kvray.results.crossed import crossed

SEEDS, QUESTIONS, SPREADS = (2, 3, 5, 10), (50, 200, 1000), (0.0, 0.02, 0.05, 0.10, 0.20)
BASE, TUNED = 0.45, 0.55
"""Mean accuracies of the base model and of the mixture."""


@dataclass(frozen=True)
class Questions:
    """How questions differ (standard deviation of their logits), and are asked: 0/1 answers at ``positions``.

    ``taste`` is the standard deviation of what a single finetune finds easy or hard in a question.
    """

    difficulty: float = 1.5
    positions: int = 3
    taste: float = 0.7

    def logit(self, accuracy: NDArray[np.float64], taste: float) -> NDArray[np.float64]:
        """Return the shifts at which the mean over all questions has these accuracies."""
        return np.interp(accuracy, *_means(float(np.hypot(self.difficulty, taste))))


@lru_cache
def _means(width: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean accuracies where the logits have this standard deviation, and the shifts that give them."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(41)
    shifts = np.linspace(-12, 12, 961)
    return (1 / (1 + np.exp(-np.add.outer(shifts, width * nodes)))) @ weights / weights.sum(), shifts


def draw(
    rng: np.random.Generator, seeds: int, questions: int, spread: float, law: Questions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean scores of the finetunes, shape ``(seeds, questions)``, and of the base, shape ``(questions,)``.

    The true difference of the mixture is ``TUNED - BASE``, to about 0.002 where accuracies are kept inside 2 to 98 %.
    """
    difficulty = rng.normal(0, law.difficulty, questions)
    accuracies = np.clip(rng.normal(TUNED, spread, seeds), 0.02, 0.98)
    logits = law.logit(accuracies, law.taste)[:, None] + difficulty + rng.normal(0, law.taste, (seeds, questions))
    tuned = rng.binomial(law.positions, 1 / (1 + np.exp(-logits))) / law.positions
    base = rng.binomial(law.positions, 1 / (1 + np.exp(-law.logit(np.array(BASE), 0.0) - difficulty))) / law.positions
    return tuned, base


def covered(
    replicates: int, seeds: int, questions: int, spread: float, law: Questions, reference: bool = True
) -> dict[str, float]:
    """Return shares of replicates by name.

    ``difference`` and ``accuracy``: the interval over seeds and questions holds the truth. With ``reference`` also
    ``alone``: the bootstrap of the difference over questions alone does; ``false`` and ``rare``: p is at most 0.05, or
    0.005, where there is no difference.
    """
    rng = np.random.default_rng([seeds, questions, round(1000 * spread)])
    seed_codes, question_codes = (each.ravel() for each in np.indices((seeds, questions)))
    hits: dict[str, int] = dict.fromkeys(("difference", "accuracy", "alone", "false", "rare"), 0)
    drawn = rng.multinomial(questions, np.full(questions, 1 / questions), 400) / questions if reference else None
    for _ in range(replicates):
        tuned, base = draw(rng, seeds, questions, spread, law)
        gap = crossed((tuned - base).ravel(), seed_codes, question_codes)
        level = crossed(tuned.ravel(), seed_codes, question_codes)
        assert gap is not None and level is not None
        hits["difference"] += abs(gap.mean - (TUNED - BASE)) <= gap.half
        low, high = level.accuracy()
        hits["accuracy"] += low <= TUNED <= high
        if drawn is not None:
            low, high = stats.percentiles(drawn @ (tuned.mean(axis=0) - base))
            hits["alone"] += low <= TUNED - BASE <= high
            p = replace(gap, mean=gap.mean - (TUNED - BASE)).p()
            hits["false"] += p <= 0.05
            hits["rare"] += p <= 0.005
    return {name: number / replicates for name, number in hits.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=2000, help="simulated sweeps per line")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="numbers of seeds, at least 2 each")
    options = parser.parse_args(argv)
    print("| seeds | questions | spread, points | difference | accuracy | questions alone | p <= 0.05 | p <= 0.005 |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for seeds, questions, spread in itertools.product(options.seeds, QUESTIONS, SPREADS):
        found = covered(options.replicates, seeds, questions, spread, Questions())
        cells = [f"{100 * found[name]:.1f}" for name in ("difference", "accuracy", "alone", "false")]
        line = [seeds, questions, f"{100 * spread:g}", *cells, f"{100 * found['rare']:.2f}"]
        print(f"| {' | '.join(map(str, line))} |", flush=True)


if __name__ == "__main__":
    main()
