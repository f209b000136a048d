"""The report on finished runs: beside the study's rows, on the test split, and against each other."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn import metrics

from transfer.console import percent, print_table
from transfer.files import read_csv, write_csv, write_json
from transfer.plots import plot_confusion
from transfer.predict import TOP_K, ranking, ranking_row
from transfer.runs import describe_dataset
from transfer.study import TEST_F1, TEST_FIGURES, VAL_ACCURACY, fine_tuning_rows, forest_rows
from transfer.weights import is_published_vgg16

UNEQUAL = 3  # times as many images in the largest class as in the smallest


def wilson(accuracy, count):
    """95% interval (low, high) of an accuracy, a fraction, on so many images (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    interval = binomtest(round(accuracy * count), int(count)).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mcnemar(right, other_right):
    """Whether two classifiers differ on the same images, by the exact test of McNemar (1947). right,
    other_right: bool (n,). Returns (images that the first alone has right, the second alone, p)."""
    first, second = int(np.sum(right & ~other_right)), int(np.sum(~right & other_right))
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def span(interval):
    """An interval of fractions as it is printed, in percent."""
    return " to ".join(f"{100 * end:.1f}" for end in interval)


def study_rows(run):
    """The study's rows that a run reruns: [(row's name, the study's percent, our fraction)]. A row of
    fine-tuning is the result of its last stage, so our figure beside it is that stage's."""
    if run.config["script"] == "finetune.py":
        stages, rows = run.metrics["stages"], fine_tuning_rows(run.config["arguments"])
        return [
            (row["row"], row["figures"][3], stages[last - 1]["val_accuracy"]) for last, row in rows
        ]
    original, forests = (
        is_published_vgg16(run.config["features"]["weights"]),
        run.metrics.get("classifiers", []),
    )
    pairs = [(row, forest) for forest in forests for row in forest_rows(original, forest)]
    return [(row["row"], row["val_accuracy"], forest["val_accuracy"]) for row, forest in pairs]


def print_runs(runs, dataset):
    """All finished runs, then every row of the study with our figure on this dataset."""
    rows, ours, cell = [], {}, dataset.study_cell
    for run in runs:
        of_study, about = study_rows(run), run.config["dataset"]
        study = " / ".join(f"{percentage:.2f}%" for _, percentage, _ in of_study) or "-"
        interval = span(wilson(run.metrics["val_accuracy"], about["images"]["val"]))
        figures = (percent(run.metrics["accuracy"]), percent(run.metrics["val_accuracy"]), interval)
        rows.append((run.folder, about["name"], *figures, *cell(study)))
        for row, _, figure in of_study if run.fingerprint == dataset.fingerprint else ():
            ours[row] = max(ours.get(row, 0), figure)
    if runs:
        print("Runs")
        header = (
            "run",
            "dataset",
            "accuracy",
            "val accuracy",
            "95% interval",
            *cell("study, MAMe"),
        )
        print_table(header, rows)
    if not dataset.in_folders:
        print("\nThe study's rows")
        absent = "not measured here" if dataset.notice is None else "not run"
        known = {row: percent(value) for row, value in ours.items()}
        rows = [
            (row, f"{value:.2f}%", known.get(row, absent)) for row, value in VAL_ACCURACY.items()
        ]
        print_table(("row", "study, MAMe", f"ours, {dataset.name}"), rows)
    print(flush=True)


class TestResult(NamedTuple):
    """What came of a test, rows in the order of the metadata."""

    figures: dict  # for metrics.json
    files: list
    true: np.ndarray  # (n,) int64
    probabilities: np.ndarray  # (n, classes)
    museums: np.ndarray  # (n,) str


def evaluate(dataset, predictions, threshold=None):
    """The test split as a TestResult, from {file: probabilities}. True classes and museums come from the
    metadata by file name, never by order. threshold: the least confidence of an answer that is given."""
    split = dataset.splits["test"]
    place = {file: row for row, file in enumerate(split.files.tolist())}
    files = [file for file in place if file in predictions]
    rows = [place[file] for file in files]
    true, museums = split.labels[rows], split.museums[rows]
    probabilities = np.stack([predictions[file] for file in files])
    predicted, classes = probabilities.argmax(axis=1), range(len(dataset.labels))
    settings = {
        "labels": classes,
        "target_names": dataset.labels,
        "output_dict": True,
        "zero_division": 0,
    }
    report = metrics.classification_report(true, predicted, **settings)
    top, by_museum, k = {}, {}, min(TOP_K, len(classes) - 1)
    if k > 1:  # of two classes every answer is among the first two
        top[f"top_{k}_accuracy"] = metrics.top_k_accuracy_score(
            true, probabilities, k=k, labels=classes
        )
    for museum in np.unique(museums[museums != ""]):
        right = (predicted == true)[museums == museum]
        by_museum[str(museum)] = {"accuracy": float(right.mean()), "support": len(right)}
    figures = {"images": len(files), "accuracy": metrics.accuracy_score(true, predicted)}
    figures |= {"balanced_accuracy": metrics.balanced_accuracy_score(true, predicted), **top}
    figures |= {key: report[key] for key in ("macro avg", "weighted avg")}
    figures |= {"classes": {label: report[label] for label in dataset.labels}, "museums": by_museum}
    figures["confusion_matrix"] = metrics.confusion_matrix(true, predicted, labels=classes).tolist()
    if threshold is not None:
        given = probabilities.max(axis=1) >= threshold
        right = float(np.mean((predicted == true)[given])) if given.any() else None
        figures["accept"] = {
            "confidence": threshold,
            "answered": float(given.mean()),
            "right": right,
        }
    keys = [key for key in figures if key == "accuracy" or key.startswith("top_")]
    intervals = {key: wilson(figures[key], figures["images"]) for key in keys}  # 95%
    for name, rows, key in (
        ("classes recall", "classes", "recall"),
        ("museums", "museums", "accuracy"),
    ):
        intervals[name] = {k: wilson(row[key], row["support"]) for k, row in figures[rows].items()}
    figures["intervals"] = intervals
    return TestResult(figures, files, true, probabilities, museums)


def print_report(figures, dataset):
    """Per class, per museum, and the averages, with 95% intervals of accuracies, beside the study's."""
    keys, study, interval = (
        ("precision", "recall", "f1-score"),
        dataset.study_cell,
        figures["intervals"],
    )
    known = TEST_F1 if len(dataset.labels) == len(TEST_F1) else ["-"] * len(dataset.labels)
    averages = {key: TEST_FIGURES[key]["f1-score"] for key in ("macro avg", "weighted avg")}
    known = dict(zip(dataset.labels, known)) | averages
    rows = []
    for name, figure in known.items():
        row = figures["classes"].get(name) or figures[name]
        recall = span(interval["classes recall"][name]) if name in figures["classes"] else "-"
        cells = (*(f"{row[key]:.2f}" for key in keys), recall, f"{row['support']:.0f}")
        rows.append((name, *cells, *study(figure if figure == "-" else f"{figure:.2f}")))
    header = ("class" if dataset.in_folders else "medium", *keys, "recall's 95%", "support")
    print_table((*header, *study("study's f1, MAMe")), rows)
    print()
    rows = []
    for museum, row in figures["museums"].items():
        ours = percent(row["accuracy"]), span(interval["museums"][museum])
        rows.append((f"museum: {museum}", *ours, *study("-"), row["support"]))
    supports = [row["support"] for row in figures["classes"].values()]
    accuracies = [key for key in figures if key.endswith("accuracy")]
    if max(supports) > UNEQUAL * min(
        supports
    ):  # the largest classes alone would decide the accuracy
        accuracies.sort(key=lambda key: key != "balanced_accuracy")
    for key in accuracies:
        name, of_study = key.replace("top_", "top-").replace("_", " "), "-"
        if key == "accuracy":
            of_study = percent(TEST_FIGURES[key])
        ours = percent(figures[key]), span(interval[key]) if key in interval else "-"
        rows.append((name, *ours, *study(of_study), figures["images"]))
    print_table(("", "ours", "95% interval", *study("study, MAMe"), "images"), rows)
    if "accept" in figures:
        given = figures["accept"]
        print(
            f"\nAnswers whose confidence is {given['confidence']:.3f} or more are given: that is to"
        )
        print(
            f"{percent(given['answered'])} of the images; {percent(given['right'])} of them are right."
        )


def write_report(out, run, dataset, tested, skipped):
    """Write metrics.json, predictions.csv and confusion_matrix.png of a TestResult into the folder `out`."""
    rows = []
    for file, museum, true, row in zip(
        tested.files, tested.museums, tested.true, tested.probabilities
    ):
        known = {"file": file, "museum": museum, "true": dataset.labels[true]}
        ranked = ranking_row(ranking(row, dataset.labels))
        rows.append({**known, **ranked, "dataset": dataset.name})
    write_csv(out / "predictions.csv", rows)
    figures = tested.figures
    title = f"{run.folder.name}, test: {percent(figures['accuracy'])} of {figures['images']} images"
    counts = np.array(figures["confusion_matrix"])
    plot_confusion(counts, dataset.labels, out / "confusion_matrix.png", title, dataset.notice)
    origin = {
        "run": run.folder.name,
        "dataset": describe_dataset(dataset),
        "skipped_images": skipped,
    }
    write_json(out / "metrics.json", {**origin, **figures})


def read_answers(path):
    """{file: (true class, whether it was told right)} of a predictions.csv."""
    rows = read_csv(path, "test the run again")
    places = [rows[0].index(name) for name in ("file", "true", "predicted_1")]
    return {row[places[0]]: (row[places[1]], row[places[1]] == row[places[2]]) for row in rows[1:]}


def compare_answers(first, second, labels):
    """How two classifiers differ on the images that both were tested on. first, second: `read_answers`.
    Returns (the accuracy of each, rows): for all images and for each class how many each alone has right,
    and p: exact McNemar, that of a class multiplied by the number of classes (Bonferroni)."""
    files = [file for file in first if file in second]
    true = np.array([first[file][0] for file in files])
    right, other = (
        np.array([answers[file][1] for file in files], bool) for answers in (first, second)
    )
    rows = []
    for name, here in [
        ("all", np.ones(len(files), bool)),
        *((label, true == label) for label in labels),
    ]:
        one, two, p = mcnemar(right[here], other[here])
        p = p if name == "all" else min(1.0, p * len(labels))
        row = {
            "class": name,
            "images": int(here.sum()),
            "first_alone": one,
            "second_alone": two,
            "p": p,
        }
        rows.append(row)
    return (float(right.mean()), float(other.mean())), rows


def print_comparison(names, accuracies, rows):
    """What `compare_answers` found, the classes that differ most first."""
    total, *classes = rows
    for name, accuracy in zip(names, accuracies):
        interval = span(wilson(accuracy, total["images"]))
        print(f"  {name}: {percent(accuracy)} ({interval}) of {total['images']} images")
    classes.sort(key=lambda row: (row["p"], -abs(row["first_alone"] - row["second_alone"])))
    rows = [(*list(row.values())[:-1], f"{row['p']:.3g}") for row in [total, *classes]]
    print_table(("right", "images", "the first alone", "the second alone", "p"), rows)
    print("(p: exact McNemar test; that of a class is multiplied by the number of classes)")
    if total["p"] < 0.05:
        print(f"They differ: {names[int(total['first_alone'] < total['second_alone'])]} is better.")
    else:
        print("No difference is seen (p is 0.05 or more).")
