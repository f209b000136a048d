"""How sure a figure of a split is, and whether two differ: 95% intervals and paired tests."""

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000  # of the bootstrap


def wilson(right, count):
    """95% interval (low, high) of an accuracy: `right` of `count` (Wilson 1927); (0, 1) for none."""
    from scipy.stats import binomtest

    if not count:
        return 0.0, 1.0
    interval = binomtest(int(right), int(count)).proportion_ci(LEVEL, "wilson")
    return float(interval.low), float(interval.high)


def interval_of(accuracy, count):
    """`wilson` of an accuracy, a fraction, on so many images."""
    return wilson(round(accuracy * count), count)


def bootstrap(statistic, true, predicted, seed=0):
    """95% interval of statistic(true, predicted), by the percentiles of resampled images (Efron 1979).

    true, predicted: int (n,). The statistic gives a number or an array (k,). Returns (low, high), each like
    that.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(true), (RESAMPLES, len(true)))
    values = [statistic(true[rows], predicted[rows]) for rows in drawn]
    return np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)


def f1_and_averages(true, predicted, classes):
    """f1 of each class, their macro and their weighted average, and the mean recall: float (classes + 3,).

    As scikit-learn's with zero_division=0, the mean recall over the classes that occur; a bootstrap calls
    it a thousand times, which takes scikit-learn's own functions seconds.
    """
    counts = np.bincount(true * classes + predicted, minlength=classes**2).reshape(classes, classes)
    support, right = counts.sum(axis=1), counts.diagonal()
    f1 = 2 * right / np.maximum(support + counts.sum(axis=0), 1)
    recalls = right[support > 0] / support[support > 0]
    return np.array([*f1, f1.mean(), f1 @ support / len(true), recalls.mean()])


def mcnemar(right, other_right):
    """Whether two classifiers differ on the same images, by the exact test of McNemar (1947).

    right, other_right: bool (n,). Returns (images that the first alone has right, those that the second
    alone has right, two-sided p).
    """
    from scipy.stats import binomtest

    first, second = int(np.sum(right & ~other_right)), int(np.sum(~right & other_right))
    p = binomtest(first, first + second).pvalue if first + second else 1.0
    return first, second, float(p)
