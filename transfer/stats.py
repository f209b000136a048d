"""How certain a figure is: intervals of accuracies, means over seeds, tests of differences."""

from math import ceil, inf, log, nan
from statistics import mean

import numpy as np
from scipy.stats import binomtest, sem, ttest_rel

UNCERTAINTY = 0.1  # share of the promises that may be missed


def wilson(accuracy, count):
    """95% interval (low, high) of an accuracy, a fraction, on so many images (Wilson 1927)."""
    interval = binomtest(round(accuracy * count), int(count)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def balanced_interval(recalls):
    """95% interval (low, high) of the mean of the classes' recalls, from those of each, [(recall,
    (low, high))]: the method of variance estimates recovery (Zou et al. 2009)."""
    figures, ends = zip(*recalls)
    middle = np.mean(figures)
    low, high = np.linalg.norm(np.subtract(np.transpose(ends), figures), axis=1) / len(figures)
    return float(middle - low), float(middle + high)


def fewest_answers(share):
    """How many answers, all of them right, prove that a share of at least `share` is right."""
    return ceil(log(UNCERTAINTY) / log(share))


def promised_confidence(confidence, right, share):
    """The confidence from which on at least a share `share` of new answers is right, with 90%
    certainty; infinite where nothing proves it. confidence: (n,) of answers for pictures that were
    not trained on. right: (n,) bool.

    Fixed-sequence testing, as in 'Learn then Test' (Angelopoulos et al. 2021): the surest answers
    first, `fewest_answers`, then a tenth more each time, as long as the exact binomial test
    (Clopper and Pearson's lower bound) says that more than the share is right.
    """
    ordered = -np.sort(-confidence)
    promised = inf
    count = fewest_answers(share)
    while count <= len(ordered):
        least = ordered[count - 1]
        given = right[confidence >= least]  # equals go together
        test = binomtest(int(given.sum()), len(given), share, "greater")
        if test.pvalue > UNCERTAINTY:
            break
        promised = float(least)
        count = ceil(1.1 * len(given))
    return promised


def highest_promise(confidence, right):
    """The largest share, in whole percent, that `promised_confidence` can promise; 0 for none."""
    for share in np.arange(99, 0, -1) / 100:
        if promised_confidence(confidence, right, share) < inf:
            return share
    return 0


def span(interval):
    """An interval of fractions as it is printed, in percent."""
    low, high = interval
    return f"{100 * low:.1f} to {100 * high:.1f}"


def mcnemar(first_alone, second_alone):
    """p of McNemar's exact test (1947) of whether two classifiers differ on the same images.
    first_alone, second_alone: how many images one of them has right and the other one has not."""
    count = first_alone + second_alone
    return float(binomtest(first_alone, count).pvalue) if count else 1.0


def in_percent(values, sign=""):
    """The mean of fractions as printed in percent, with "+- standard error" where there are
    several. sign: "+" for differences."""
    text = f"{100 * mean(values):{sign}.2f}"
    return text if len(values) == 1 else f"{text} +- {100 * sem(values):.2f}"


def paired_p(values, others):
    """p of the paired t-test of two lists of figures, one a seed; no number where there are fewer
    than two pairs, or where all differ alike, which says nothing of their spread."""
    if np.ptp(np.subtract(values, others)) < 1e-9:
        return nan
    return float(ttest_rel(values, others).pvalue)
