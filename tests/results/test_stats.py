"""Statistics against values worked by hand, and against simulations with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from kvray.results import stats


def test_mcnemar_is_the_two_sided_binomial_of_the_discordant_pairs() -> None:
    # 1 against 9: 2 * (1 + 10) / 2^10.
    assert stats.mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert stats.mcnemar(1, 9) == pytest.approx(22 / 1024)
    # 5 against 0: 2 / 2^5.
    assert stats.mcnemar(5, 0) == pytest.approx(0.0625)
    assert stats.mcnemar(4, 4) == 1.0
    assert stats.mcnemar(0, 0) == 1.0


def test_sign_flip_is_mcnemar_where_each_question_gives_one_pair() -> None:
    for better, worse in ((9, 1), (5, 0), (30, 17), (3, 3)):
        sums = np.array([1.0] * better + [-1.0] * worse + [0.0] * 7)
        p, exact = stats.sign_flip(sums)
        assert exact
        assert p == pytest.approx(stats.mcnemar(better, worse))


@pytest.mark.parametrize("sums", [[3, -1, 2, 2, 0], [1 / 3, 2 / 3, -1 / 3, 1.0], [6, 5, 5, -4, 3, 1, 1]])
def test_sign_flip_equals_the_enumeration_of_all_flips(sums: list[float]) -> None:
    size = [abs(v) for v in sums if v]
    flips = itertools.product((1, -1), repeat=len(size))
    totals = [abs(sum(s * v for s, v in zip(signs, size, strict=True))) for signs in flips]
    expected = np.mean([t >= abs(sum(sums)) - 1e-9 for t in totals])
    assert stats.sign_flip(np.array(sums, dtype=np.float64)) == (pytest.approx(expected), True)


def test_sign_flip_off_the_lattice_is_sampled_and_close_to_the_lattice_answer() -> None:
    rng = np.random.default_rng(0)
    whole = np.array([1.0] * 40 + [-1.0] * 22)
    exact, _ = stats.sign_flip(whole)
    sampled, is_exact = stats.sign_flip(whole + rng.normal(0, 1e-4, whole.size))
    assert not is_exact
    assert sampled == pytest.approx(exact, abs=0.02)


def test_holm_agrees_with_a_worked_example() -> None:
    # Sorted .005 .01 .03 .04 times 4 3 2 1 = .02 .03 .06 .04, then made monotone.
    np.testing.assert_allclose(stats.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(stats.holm(np.array([0.5, 0.9])), [1.0, 1.0])
    np.testing.assert_allclose(stats.holm(np.array([0.02, np.nan, 0.03])), [0.04, np.nan, 0.04])
    assert stats.holm(np.array([])).size == 0


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe (1998), table I, method 3: 81/263 and 0/20.
    assert stats.wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert stats.wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert stats.wilson(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
    with pytest.raises(ValueError, match="n=0"):
        stats.wilson(0.5, 0)


def test_accuracy_is_wilson_where_each_question_occurs_once() -> None:
    scores = np.array([1.0] * 81 + [0.0] * 182)
    found = stats.accuracy(scores, np.arange(263))
    assert (found.low, found.high) == pytest.approx(stats.wilson(81 / 263, 263))


def test_accuracy_widens_where_the_rows_of_a_question_agree() -> None:
    rng = np.random.default_rng(1)
    per_question = (rng.random(100) < 0.6).astype(np.float64)
    copied = stats.accuracy(np.repeat(per_question, 6), np.repeat(np.arange(100), 6))
    naive = stats.accuracy(np.repeat(per_question, 6), np.arange(600))
    assert copied.mean == pytest.approx(naive.mean)
    # Six copies carry no more knowledge than one: the width is that of 100 rows, not of 600.
    assert (copied.high - copied.low) / (naive.high - naive.low) == pytest.approx(math.sqrt(6), rel=0.08)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_alike_is_never_certain(value: float) -> None:
    found = stats.accuracy(np.full(60, value), np.repeat(np.arange(10), 6))
    assert found.high - found.low > 0.2
    paired = stats.paired(np.full(60, value), np.full(60, value), np.repeat(np.arange(10), 6))
    assert paired.difference == 0
    assert paired.low < -0.2 < 0.2 < paired.high
    assert paired.p == 1.0


def test_a_single_question_says_nothing() -> None:
    found = stats.paired(np.zeros(6), np.array([1.0, 1, 1, 1, 1, 0]), np.zeros(6, dtype=np.int64))
    assert (found.low, found.high, found.p) == (-1.0, 1.0, 1.0)


def test_difference_is_b_minus_a_and_its_interval_is_on_that_side() -> None:
    rng = np.random.default_rng(2)
    a = (rng.random(400) < 0.4).astype(np.float64)
    b = np.maximum(a, rng.random(400) < 0.3)
    up = stats.paired(a, b, np.arange(400))
    down = stats.paired(b, a, np.arange(400))
    assert 0 < up.low < up.difference < up.high
    assert (down.difference, down.low, down.high) == pytest.approx((-up.difference, -up.high, -up.low), abs=0.005)
    assert (up.better, up.worse) == (down.worse, down.better)
    assert up.test == "McNemar"
    assert up.p == stats.mcnemar(up.better, up.worse)


def test_intervals_cover_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 1000)
    stats._kept_resamples.cache_clear()
    rng = np.random.default_rng(3)
    questions = np.repeat(np.arange(60), 6)
    differences, means, rounds = 0, 0, 400
    for _ in range(rounds):
        # A skill and a gain that a question's six positions share: strongly clustered; mean 0.4, true difference 0.1.
        skill = 0.8 * np.repeat(rng.beta(0.5, 0.5, 60), 6)
        gain = 0.2 * np.repeat(rng.random(60) < 0.5, 6)
        a = (rng.random(360) < skill).astype(np.float64)
        b = (rng.random(360) < skill + gain).astype(np.float64)
        found = stats.paired(a, b, questions)
        differences += found.low <= 0.1 <= found.high
        mean = stats.accuracy(a, questions)
        means += mean.low <= 0.4 <= mean.high
    stats._kept_resamples.cache_clear()
    assert 0.91 <= differences / rounds <= 0.985
    assert 0.91 <= means / rounds <= 0.985


def test_the_test_by_question_keeps_its_level_under_clustering() -> None:
    rng = np.random.default_rng(4)
    questions = np.repeat(np.arange(40), 6)
    false, rounds = 0, 400
    for _ in range(rounds):
        # No mean effect, but each question sways all its positions one way or the other.
        sway = np.repeat(rng.choice([-0.4, 0.4], 40), 6)
        a = (rng.random(240) < 0.5).astype(np.float64)
        b = (rng.random(240) < 0.5 + sway).astype(np.float64)
        sums = np.bincount(questions, weights=b - a)
        false += stats.sign_flip(sums)[0] <= 0.05
    assert false / rounds <= 0.08


def test_results_do_not_change_between_calls() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(90), rng.random(90)
    questions = np.repeat(np.arange(30), 3)
    assert stats.paired(a, b, questions) == stats.paired(a, b, questions)


@pytest.mark.parametrize(
    ("difference", "low", "high", "p", "said"),
    [
        (0.1, 0.05, 0.15, 0.001, "better"),
        (-0.1, -0.15, -0.05, 0.001, "worse"),
        (0.1, 0.05, 0.15, 0.2, "within noise"),
        (0.1, -0.01, 0.2, 0.04, "within noise"),
        (0.1, 0.05, 0.15, math.nan, "within noise"),
    ],
)
def test_a_verdict_needs_both_the_corrected_p_and_the_interval(
    difference: float, low: float, high: float, p: float, said: str
) -> None:
    assert stats.verdict(difference, low, high, p) == said


@pytest.mark.parametrize(("positions", "comparisons"), [(1, 1), (1, 8), (5, 8)])
def test_what_a_comparison_can_detect_is_what_was_planned_for_it(positions: int, comparisons: int) -> None:
    rng = np.random.default_rng(7)
    questions = np.repeat(np.arange(400), positions)
    # A fifth of the questions are answered otherwise by the second model, at all positions alike.
    gap = np.repeat(rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.8, 0.1]), positions)
    base = np.where(gap == 0, 0.0, np.where(gap > 0, 0.0, 1.0))
    seen = stats.paired(base, base + gap, questions)
    measured = stats.detectable_from(seen.low, seen.high, comparisons)
    assert measured == pytest.approx(stats.detectable_difference(400, comparisons=comparisons), rel=0.1)


def test_more_comparisons_need_a_larger_difference_that_is_still_found_four_times_in_five() -> None:
    n, many, rng = 300, 8, np.random.default_rng(3)
    d = stats.detectable_difference(n, 0.2, comparisons=many)
    assert d > 1.2 * stats.detectable_difference(n, 0.2)
    found = 0
    for _ in range(400):
        better, worse, _ = rng.multinomial(n, [(0.2 + d) / 2, (0.2 - d) / 2, 0.8])
        found += stats.mcnemar(int(better), int(worse)) <= 0.05 / many
    # McNemar's exact test is a little less powerful than the normal approximation.
    assert 0.7 <= found / 400 <= 0.88


def test_detectable_difference_has_the_power_it_claims() -> None:
    assert stats.detectable_difference(200) == pytest.approx(0.088, abs=0.001)
    assert stats.detectable_difference(2655) == pytest.approx(0.0243, abs=0.001)
    assert stats.detectable_difference(3) == 1.0
    rng = np.random.default_rng(6)
    n, d = 400, stats.detectable_difference(400)
    draws = rng.multinomial(n, [(0.2 + d) / 2, (0.2 - d) / 2, 0.8], size=600)
    power = np.mean([stats.mcnemar(int(x), int(y)) <= 0.05 for x, y, _ in draws])
    assert 0.70 <= power <= 0.86  # exact McNemar is a little shy of the normal approximation
    with pytest.raises(ValueError, match="discordant"):
        stats.detectable_difference(100, discordant=0.0)


def test_many_questions_are_resampled_by_value_with_the_same_spread() -> None:
    rng = np.random.default_rng(8)
    n = 4000  # more than are drawn one by one
    scores = (rng.random(n) < 0.3).astype(float)
    sums = np.stack([scores, np.ones(n)])
    drawn = stats.totals(sums)
    assert drawn.shape == (2, stats.RESAMPLES)
    assert np.all(drawn[1] == n)  # the rows are drawn together: every resample has n questions
    mean = scores.mean()
    assert drawn[0].mean() / n == pytest.approx(mean, abs=2e-4)
    assert drawn[0].std() / n == pytest.approx(math.sqrt(mean * (1 - mean) / n), rel=0.03)
    found = stats.paired(np.zeros(n), scores, np.arange(n))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * math.sqrt(mean * (1 - mean) / n), rel=0.04)
