"""The report on the test split, and the comparison of two runs: report.py, test_model.py."""

import json
import re
from dataclasses import replace
from math import comb, sqrt

import numpy as np
import pytest
from conftest import COUNTS, MEDIUMS, read_rows, write_csv
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from transfer import report
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.images import load_images
from transfer.plots import fonts_for, plot_confusion

RUNS = ("runs/tiny-forest-none-all-trees12-leaf2", "runs/tiny-finetune-i-none")


@pytest.mark.parametrize("kind", ["forest-none-all-trees12-leaf2", "finetune-i-none"])
def test_figures_are_scikit_learns_and_tied_to_files(tiny, in_runs, script, capsys, kind):
    run = f"runs/tiny-{kind}"
    script("test_model", "--run", run, "--data", tiny)
    out = capsys.readouterr().out
    assert out.count("TINY DATASET of the tests.") == 2
    metrics = json.loads((in_runs / run / "test" / "metrics.json").read_text())
    rows = read_rows(in_runs / run / "test" / "predictions.csv")
    assert metrics["images"] == len(rows) == len(MEDIUMS) * COUNTS["test"] + 2
    for row in rows:  # the class is in the file's name
        assert row["file"].split(".")[:2] == ["test", str(MEDIUMS.index(row["true"]))]
    true = [MEDIUMS.index(row["true"]) for row in rows]
    first = [MEDIUMS.index(row["predicted_1"]) for row in rows]
    assert metrics["accuracy"] == pytest.approx(np.mean(np.equal(true, first)))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, first))
    assert metrics["macro avg"]["f1-score"] == pytest.approx(f1_score(true, first, average="macro"))
    assert {name: c["support"] for name, c in metrics["classes"].items()} == {
        name: true.count(index) for index, name in enumerate(MEDIUMS)
    }
    museums = {row["museum"] for row in rows}
    assert set(metrics["museums"]) == museums
    for museum in museums:
        here = [row["true"] == row["predicted_1"] for row in rows if row["museum"] == museum]
        assert metrics["museums"][museum] == {
            "accuracy": pytest.approx(np.mean(here)),
            "support": len(here),
        }
        low, high = metrics["intervals"]["museums"][museum]
        assert low < np.mean(here) < high or np.mean(here) in (low, high, 0, 1)
    assert np.sum(metrics["confusion_matrix"]) == len(rows)
    assert np.trace(metrics["confusion_matrix"]) == np.sum(np.equal(true, first))
    assert metrics["dataset"]["notice"] == "TINY DATASET of the tests."
    assert (in_runs / run / "test" / "confusion_matrix.png").read_bytes().startswith(b"\x89PNG")


def test_network_predictions_are_the_models_own_for_each_file(tiny, in_runs, script):
    from transfer.weights import load_model

    run = in_runs / "runs" / "tiny-finetune-i-none"
    script("test_model", "--run", run, "--data", tiny, "--batch-size", "5")
    model = load_model(run)
    dataset = load_images(load_dataset(tiny), ("test",), 32, "none")
    images = dataset.splits["test"].images[np.arange(22)]
    expected = dict(zip(dataset.splits["test"].files, np.asarray(model.predict_on_batch(images))))
    for row in read_rows(run / "test" / "predictions.csv"):
        probabilities = expected[row["file"]]
        assert row["predicted_1"] == MEDIUMS[probabilities.argmax()]
        assert float(row["probability_1"]) == pytest.approx(probabilities.max(), abs=1e-4)


def test_the_order_of_the_predictions_does_not_matter(tiny):
    dataset = load_dataset(tiny)
    files = dataset.splits["test"].files.tolist()
    rng = np.random.default_rng(0)
    predictions = {file: rng.dirichlet(np.ones(4)) for file in files}
    shuffled = {file: predictions[file] for file in rng.permutation(files).tolist()}
    one, two = report.evaluate(dataset, predictions), report.evaluate(dataset, shuffled)
    assert one.figures == two.figures
    assert one.figures["top_3_accuracy"] == pytest.approx(
        top_k_accuracy_score(one.true, one.probabilities, k=3, labels=range(4))
    )


def test_without_a_flag_the_best_validation_accuracy_is_tested(tiny, in_runs, script, capsys):
    script("test_model", "--data", tiny)
    scores = {
        path.parent.name: json.loads(path.read_text())["val_accuracy"]
        for path in (in_runs / "runs").glob("*/metrics.json")
    }
    best = max(sorted(scores), key=scores.get)
    assert [path.parent.name for path in (in_runs / "runs").glob("*/test")] == [best]
    out = capsys.readouterr().out
    assert re.search(rf"test_model.py: resolved configuration\n(  .*\n)*  run +runs/{best}\n", out)
    assert all(name in out for name in scores)
    assert "81.25%" in out
    assert "73.00%" in out


def test_without_a_run_the_studys_rows_are_shown(tiny, workdir, script, capsys):
    script("test_model", "--data", tiny)
    out = capsys.readouterr().out
    assert "81.25%" in out
    assert "Next: python finetune.py" in out


def test_real_data_that_was_not_run_is_said_to_be_not_measured(own_tiny, workdir, script, capsys):
    root, _ = own_tiny
    settings = json.loads((root / "defaults.json").read_text())
    (root / "defaults.json").write_text(json.dumps(settings | {"notice": None}))
    script("test_model", "--data", root)
    assert capsys.readouterr().out.count("not measured here") == 16


def test_missing_test_images_are_named_or_left_out_and_recorded(tiny, own_tiny, in_runs, script):
    root, _ = own_tiny
    (root / "data_256" / "test.2.1.jpg").unlink()
    run = "runs/tiny-finetune-i-none"
    with pytest.raises(BadInput, match=r"test\.2\.1\.jpg"):
        script("test_model", "--run", run, "--data", root)
    script("test_model", "--run", run, "--data", root, "--skip-unreadable", "--out", "report")
    metrics = json.loads((in_runs / "report" / "metrics.json").read_text())
    assert metrics["images"] == 21
    assert metrics["skipped_images"] == ["test.2.1.jpg"]


def test_what_does_not_fit_is_refused(tiny, own_tiny, in_runs, script):
    run = "runs/tiny-finetune-i-none"
    with pytest.raises(BadInput, match="nowhere"):
        script("test_model", "--run", "nowhere", "--data", tiny)
    with pytest.raises(BadInput, match="32 pixels"):
        script("test_model", "--run", run, "--data", tiny, "--image-size", "48")
    root, rows = own_tiny
    labels = (root / "MAMe_labels.csv").read_text().replace("Bronze", "Brass")
    (root / "MAMe_labels.csv").write_text(labels)
    write_csv(
        root, [(file, medium.replace("Bronze", "Brass"), *rest) for file, medium, *rest in rows]
    )
    with pytest.raises(BadInput, match="other classes"):
        script("test_model", "--run", run, "--data", root)
    path = in_runs / run / "model.keras"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadInput, match="model.keras is truncated"):
        script("test_model", "--run", run, "--data", tiny)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (81, 100), (12_682, 15_657)])
def test_wilsons_interval_is_his_formula(right, count):
    z, share = 1.959963984540054, right / count
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert report.wilson(right / count, count) == pytest.approx(
        (middle - half, middle + half), abs=1e-12
    )


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 1), (0, 7), (12, 3)])
def test_mcnemar_is_the_sum_of_the_binomial_tail(first, second):
    right = np.array([True] * first + [False] * second + [True, False] * 5)
    other = np.array([False] * first + [True] * second + [True, False] * 5)
    count = first + second
    tail = sum(comb(count, k) for k in range(min(first, second) + 1)) / 2**count
    assert report.mcnemar(right, other) == (first, second, pytest.approx(min(1, 2 * tail)))


def test_two_runs_are_compared_on_the_same_images(tiny, in_runs, script, capsys):
    script("test_model", "--run", RUNS[0], "--data", tiny)
    script("test_model", "--compare", *RUNS)  # the second is tested first
    out = capsys.readouterr().out
    answers = []
    for run in RUNS:
        rows = read_rows(in_runs / run / "test" / "predictions.csv")
        answers.append([row["true"] == row["predicted_1"] for row in rows])
    one, two = map(np.array, answers)
    path = in_runs / RUNS[0] / "test" / "compared-with-tiny-finetune-i-none.csv"
    total, *classes = read_rows(path)
    assert (int(total["images"]), total["class"], len(classes)) == (22, "all", 4)
    assert int(total["first_alone"]) == np.sum(one & ~two)
    assert int(total["second_alone"]) == np.sum(two & ~one)
    assert sum(int(row["first_alone"]) for row in classes) == np.sum(one & ~two)
    for run, right in zip(RUNS, (one, two)):
        metrics = json.loads((in_runs / run / "test" / "metrics.json").read_text())
        assert f"{run}: {100 * np.mean(right):.2f}% (" in out
        assert metrics["intervals"]["accuracy"] == pytest.approx(report.wilson(np.mean(right), 22))
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


@pytest.mark.parametrize(("counts", "first"), [((4, 1), "balanced accuracy"), ((3, 1), "accuracy")])
def test_balanced_accuracy_comes_first_where_classes_are_unequal(tiny, capsys, counts, first):
    dataset, labels = load_dataset(tiny), np.repeat([0, 1, 2, 3], [counts[0], *[counts[1]] * 3])
    split = dataset.splits["test"]
    rows = np.concatenate(
        [np.flatnonzero(split.labels == n)[: np.sum(labels == n)] for n in range(4)]
    )
    dataset = replace(dataset, splits={**dataset.splits, "test": split.take(rows)})
    tested = report.evaluate(dataset, {file: np.eye(4)[0] for file in split.files[rows].tolist()})
    report.print_report(tested.figures, dataset)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if "accuracy  " in line]
    assert lines[0].startswith(first + " ")


def test_large_matrices_are_drawn_in_little_time_and_size(tmp_path):
    labels = [f"class {number}" for number in range(150)]
    plot_confusion(np.ones((150, 150), int), labels, tmp_path / "a.png", "title", None)
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) < 4000


def test_letters_that_no_font_has_are_said_once(tmp_path, capsys, recwarn):
    for name in (
        "a",
        "b",
    ):  # STIX, which matplotlib brings along, has the first of these, and none the second
        plot_confusion(
            np.eye(2, dtype=int),
            ["\u27fc \ue154", "\U00013000"],
            tmp_path / f"{name}.png",
            "",
            None,
        )
    assert capsys.readouterr().out.count("No font here has the letters \U00013000") == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert any("STIX" in name for name in fonts_for(frozenset("\ue154")))
