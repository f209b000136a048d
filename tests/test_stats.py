"""How certain a figure is: stats.py."""

from math import inf, sqrt

import numpy as np
import pytest

from transfer import stats


def test_wilsons_interval_is_his_formula():
    assert stats.wilson(0, 5) == pytest.approx((0, 0.43448), abs=1e-5)
    assert stats.wilson(0.81, 100) == pytest.approx((0.72222, 0.87485), abs=1e-5)


def test_the_interval_of_balanced_accuracy_adds_up_those_of_the_classes():
    found = stats.balanced_interval([(0.6, (0.3, 0.9)), (0.4, (0.0, 0.8))])
    assert found == pytest.approx((0.5 - 0.25, 0.5 + 0.25))  # 3, 4 and 5


@pytest.mark.parametrize(
    ("right", "share", "answered"),
    [
        ([1] * 22, 0.9, 22),  # 0.9 ** 22 < 0.1
        ([1] * 21, 0.9, 0),
        ([1] * 47, 0.9, 43),  # after 22, 25, 28, 31, 35, 39
        ([1] * 24 + [0] * 9, 0.9, 22),
        ([0] + [1] * 70, 0.9, 0),  # it ends where it cannot begin
    ],
)
def test_a_promise_rests_on_the_surest_answers(right, share, answered):
    confidence = np.linspace(0.5, 0.9, len(right))
    surest_last = np.array(right[::-1])
    least = stats.promised_confidence(confidence, surest_last, share)
    assert (confidence >= least).sum() == answered


@pytest.mark.parametrize(("count", "least"), [(30, inf), (70, 0.7)])
def test_answers_of_one_confidence_go_together(count, least):
    right = np.arange(count) > 0  # one wrong of 30 does not prove 0.9, one of 70 does
    assert stats.promised_confidence(np.full(count, 0.7), right, 0.9) == least


def test_a_promise_is_kept_in_nine_of_ten_samples():
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(60):
        confidence = rng.uniform(0.5, 1, 300)
        right = rng.random(300) < confidence
        least = stats.promised_confidence(confidence, right, 0.85)
        if least < inf:
            share = (1 + least) / 2  # of new ones above it
            kept.append(share >= 0.85)

    assert len(kept) > 40
    assert np.mean(kept) >= 0.9


def test_the_highest_promise_is_what_the_first_right_answers_prove():
    confidence = np.linspace(0.5, 0.9, 12)
    assert stats.highest_promise(confidence, np.ones(12, bool)) == 0.82  # 0.1 ** (1 / 12)
    assert stats.highest_promise(confidence, confidence < 0.9) == 0


def test_mcnemar_is_the_sum_of_the_binomial_tail():
    assert stats.mcnemar(0, 0) == 1
    assert stats.mcnemar(12, 3) == pytest.approx(2 * 576 / 2**15)


def test_several_seeds_have_a_standard_error_and_a_t_test():
    assert stats.in_percent([0.5], "+") == "+50.00"
    assert stats.in_percent([0.1, 0.3]) == "20.00 +- 10.00"

    # t of the differences 1, 2, 3 is the root of 12; with 2 degrees of freedom
    # the tails of its distribution are 1 - t / sqrt(2 + t^2)
    p = stats.paired_p([1, 2, 3], [0, 0, 0])
    assert p == pytest.approx(1 - sqrt(12 / 14))
    assert np.isnan(stats.paired_p([1, 2], [1, 2]))
