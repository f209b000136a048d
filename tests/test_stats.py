"""How certain a figure is: stats.py."""

from math import sqrt

import pytest

from transfer import stats


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(0, 5, 0, 0.43448), (81, 100, 0.72222, 0.87485), (12_682, 15_657, 0.80376, 0.81606)],
)
def test_wilsons_interval_is_his_formula(right, count, low, high):
    interval = stats.wilson(right / count, count)
    assert interval == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "p"), [(0, 0, 1), (1, 1, 1), (0, 7, 2 / 2**7), (12, 3, 2 * 576 / 2**15)]
)
def test_mcnemar_is_the_sum_of_the_binomial_tail(first, second, p):
    assert stats.mcnemar(first, second) == pytest.approx(p)


def test_several_seeds_have_a_standard_error_and_a_t_test():
    assert stats.in_percent([0.5], "+") == "+50.00"
    assert stats.in_percent([0.1, 0.3]) == "20.00 +- 10.00"

    # t of the differences 1, 2, 3 is the root of 12; with 2 degrees of freedom
    # the tails of its distribution are 1 - t / sqrt(2 + t^2)
    p = stats.paired_p([1, 2, 3], [0, 0, 0])
    assert p == pytest.approx(1 - sqrt(12 / 14))
    assert stats.paired_p([1, 2], [1, 2]) is None
    assert stats.paired_p([1], [2]) is None
