"""How certain a figure is: intervals of accuracies, means over seeds, tests of differences."""

from math import sqrt
from statistics import mean, stdev

from scipy.stats import binomtest, ttest_rel


def wilson(accuracy, count):
    """95% interval (low, high) of an accuracy, a fraction, on so many images (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    interval = binomtest(round(accuracy * count), int(count)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def span(interval):
    """An interval of fractions as it is printed, in percent; '-' for None."""
    return "-" if interval is None else "{:.1f} to {:.1f}".format(*(100 * end for end in interval))


def mcnemar(first_alone, second_alone):
    """p of McNemar's exact test (1947) of whether two classifiers differ on the same images.
    first_alone, second_alone: how many images one of them has right and the other one has not."""
    count = first_alone + second_alone
    return float(binomtest(first_alone, count).pvalue) if count else 1.0


def mean_and_error(values):
    """(mean, its standard error) of figures, one a seed; the error of a single one is None."""
    if len(values) < 2:
        return mean(values), None
    return mean(values), stdev(values) / sqrt(len(values))


def in_percent(values, sign=""):
    """The mean of fractions, one a seed, as printed in percent, with "+- standard error" where
    there are several. sign: "+" for differences."""
    middle, error = mean_and_error(values)
    text = f"{100 * middle:{sign}.2f}"
    return text if error is None else f"{text} +- {100 * error:.2f}"


def paired_p(values, others):
    """p of the paired t-test of two lists of figures, one a seed; None where there are fewer than
    two pairs, or where no pair differs."""
    if len(values) < 2 or list(values) == list(others):
        return None
    return float(ttest_rel(values, others).pvalue)
