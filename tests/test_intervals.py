"""intervals.py, and test_model.py --compare."""

import csv
import json
from math import comb, sqrt

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from transfer import intervals, report
from transfer.screen import BadInput

RUNS = ("runs/tiny-forest-none-all-trees12-leaf2", "runs/tiny-finetune-i-none")


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (81, 100), (12_682, 15_657)])
def test_wilsons_interval_is_his_formula(right, count):
    z, share = 1.959963984540054, right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert intervals.wilson(right, count) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_nothing_is_known_of_no_image():
    assert intervals.wilson(0, 0) == (0, 1)


def test_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, 60), rng.integers(0, 6, 60)  # class 5 never occurs
    *f1, macro, weighted, balanced = intervals.f1_and_averages(true, predicted, 6)
    given = {"labels": range(6), "zero_division": 0}
    assert f1 == pytest.approx(f1_score(true, predicted, average=None, **given))
    assert macro == pytest.approx(f1_score(true, predicted, average="macro", **given))
    assert weighted == pytest.approx(f1_score(true, predicted, average="weighted", **given))
    kept = predicted < 5  # scikit-learn warns of predictions that are no class
    assert balanced == pytest.approx(
        balanced_accuracy_score(true, np.where(kept, predicted, (true + 1) % 5))
    )


def test_the_bootstrap_of_an_accuracy_is_near_wilsons_interval():
    true = np.zeros(400, int)
    predicted = (np.arange(400) % 4 == 0).astype(int)
    low, high = intervals.bootstrap(lambda a, b: np.mean(a == b), true, predicted)
    assert (low, high) == pytest.approx(intervals.wilson(300, 400), abs=0.01)
    assert (low, high) == tuple(intervals.bootstrap(lambda a, b: np.mean(a == b), true, predicted))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (0, 7), (12, 3)])
def test_mcnemar_is_the_sum_of_the_binomial_tail(first, second):
    right = np.array([True] * first + [False] * second + [True, False] * 5)
    other = np.array([False] * first + [True] * second + [True, False] * 5)
    count = first + second
    tail = sum(comb(count, k) for k in range(min(first, second) + 1)) / 2**count
    assert intervals.mcnemar(right, other) == (first, second, pytest.approx(min(1, 2 * tail)))


def test_two_runs_are_compared_on_the_same_images(tiny, in_runs, script, capsys):
    script("test_model", "--run", RUNS[0], "--data", tiny)
    script("test_model", "--compare", *RUNS)  # the second is tested first
    out = capsys.readouterr().out
    answers = []
    for run in RUNS:
        with open(in_runs / run / "test" / "predictions.csv", newline="") as file:
            answers.append([row["true"] == row["predicted_1"] for row in csv.DictReader(file)])
    one, two = map(np.array, answers)
    path = in_runs / RUNS[0] / "test" / "compared-with-tiny-finetune-i-none.csv"
    with open(path, newline="") as file:
        total, *classes = csv.DictReader(file)
    assert (int(total["images"]), total["class"], len(classes)) == (22, "all", 4)
    assert int(total["first_alone"]) == np.sum(one & ~two)
    assert int(total["second_alone"]) == np.sum(two & ~one)
    assert sum(int(row["first_alone"]) for row in classes) == np.sum(one & ~two)
    for run, right in zip(RUNS, (one, two)):
        metrics = json.loads((in_runs / run / "test" / "metrics.json").read_text())
        assert f"{run}: {100 * np.mean(right):.2f}% (" in out
        assert metrics["intervals"]["accuracy"] == pytest.approx(intervals.wilson(np.sum(right), 22))
    assert ("is better" in out) == (float(total["p"]) < 0.05)
    assert out.count("TINY DATASET of the tests.") == 3


def test_the_better_one_is_named(capsys):
    first = {f"{n}": ("a" if n % 2 else "b", n < 30) for n in range(40)}
    second = {f"{n}": ("a" if n % 2 else "b", n >= 20) for n in range(30)}
    accuracies, rows = report.compare_answers(first, second, ["a", "b"])
    assert accuracies == (1, pytest.approx(1 / 3))
    assert [row["images"] for row in rows] == [30, 15, 15]  # those of both alone
    report.print_comparison(["one", "two"], accuracies, rows)
    assert "They differ: one is better." in capsys.readouterr().out


def test_runs_of_two_datasets_are_not_compared(in_runs, script):
    path = in_runs / RUNS[1] / "config.json"
    config = json.loads(path.read_text())
    config["dataset"]["fingerprint"] = "another"
    path.write_text(json.dumps(config))
    with pytest.raises(BadInput, match="two datasets"):
        script("test_model", "--compare", *RUNS)
