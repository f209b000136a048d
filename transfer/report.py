"""The report on a finished run: beside the study's rows, on the test split, and what speaks for it."""

import numpy as np

from transfer.classifiers import load_pipeline
from transfer.features import is_original
from transfer.files import read_csv, write_csv, write_json
from transfer.images import decode_image
from transfer.intervals import bootstrap, f1_and_averages, interval_of, mcnemar
from transfer.plots import (
    GALLERY_COLUMNS,
    GALLERY_ROWS,
    plot_confusion,
    plot_explanation,
    plot_gallery,
    plot_importance,
)
from transfer.prediction import TOP, grad_cam, layer_importance, ranking, ranking_row
from transfer.recipes import fine_tuning_rows
from transfer.runs import describe_dataset
from transfer.screen import percent, print_table, progress
from transfer.study import TEST_F1, TEST_FIGURES, VAL_ACCURACY, forest_rows

# The table of runs -----------------------------------------------------------------------


def study_rows(run):
    """The study's rows that a run reruns: [(row's name, the study's percent, our fraction)].

    A row of fine-tuning is the result of its last step, so our figure beside it is that step's.
    """
    if run.config["script"] == "finetune.py":
        steps, rows = run.metrics["steps"], fine_tuning_rows(run.config["arguments"])
        return [(row["row"], row["figures"][3], steps[last - 1]["val_accuracy"]) for last, row in rows]
    return [
        (row["row"], row["val_accuracy"], forest["val_accuracy"])
        for forest in run.metrics.get("forests", [])
        for row in forest_rows(is_original(run.config["features"]["model"]), forest)
    ]


def print_runs(runs, dataset):
    """All finished runs, then every row of the study with our figure on this dataset."""
    if runs:
        print("Runs")
        rows = []
        for run in runs:
            study = " / ".join(f"{percentage:.2f}%" for _, percentage, _ in study_rows(run))
            figures = (percent(run.metrics["accuracy"]), percent(run.metrics["val_accuracy"]))
            images = run.config["dataset"]["images"]["val"]
            interval = interval_of(run.metrics["val_accuracy"], images)
            name = run.config["dataset"]["name"]
            rows.append((run.folder, name, *figures, span(interval), study or "-"))
        print_table(("run", "dataset", "accuracy", "val accuracy", "95% interval", "study, MAMe"), rows)
    if dataset.in_folders:
        print(flush=True)
        return
    ours = {}
    for run in runs:
        if run.fingerprint == dataset.fingerprint:
            for row, _, figure in study_rows(run):
                ours[row] = max(ours.get(row, 0), figure)
    print("\nThe study's rows")
    header = ("row", "study, MAMe", f"ours, {dataset.name}")
    absent = "not measured here" if dataset.notice is None else "not run"
    print_table(
        header,
        [
            (name, f"{value:.2f}%", percent(ours[name]) if name in ours else absent)
            for name, value in VAL_ACCURACY.items()
        ],
    )
    print(flush=True)


# The test split ------------------------------------------------------------------------------


def evaluate(dataset, predictions):
    """All figures of the test split as one dict for metrics.json, from {file: probabilities}.

    True classes and museums come from the metadata by file name, never by order.
    Returns (figures, files, true (n,), probabilities (n, n_classes), museums (n,)).
    """
    from sklearn.metrics import (
        accuracy_score,
        balanced_accuracy_score,
        classification_report,
        confusion_matrix,
        top_k_accuracy_score,
    )

    split = dataset.splits["test"]
    place = {file: row for row, file in enumerate(split.files.tolist())}
    files = [file for file in place if file in predictions]
    rows = [place[file] for file in files]
    true, museums = split.labels[rows], split.museums[rows]
    probabilities = np.stack([predictions[file] for file in files])
    predicted = probabilities.argmax(axis=1)
    classes = range(len(dataset.labels))
    report = classification_report(
        true, predicted, labels=classes, target_names=dataset.labels, output_dict=True, zero_division=0
    )
    top, k = {}, min(TOP, len(classes) - 1)
    if k > 1:  # of two classes every answer is among the first two
        top[f"top_{k}_accuracy"] = top_k_accuracy_score(true, probabilities, k=k, labels=classes)
    figures = {
        "images": len(files),
        "accuracy": accuracy_score(true, predicted),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        **top,
        "macro avg": report["macro avg"],
        "weighted avg": report["weighted avg"],
        "classes": {label: report[label] for label in dataset.labels},
        "museums": {
            str(museum): {
                "accuracy": accuracy_score(true[museums == museum], predicted[museums == museum]),
                "support": int((museums == museum).sum()),
            }
            for museum in np.unique(museums[museums != ""])
        },
        "confusion_matrix": confusion_matrix(true, predicted, labels=classes).tolist(),
    }
    figures["intervals"] = intervals(figures, true, predicted, len(classes))
    return figures, files, true, probabilities, museums


def intervals(figures, true, predicted, classes):
    """95% intervals of the figures of `evaluate`: Wilson's of accuracies, bootstrapped ones of f1 and the
    balanced accuracy."""
    low, high = bootstrap(lambda *drawn: f1_and_averages(*drawn, classes), true, predicted)
    *f1, macro, weighted, balanced = zip(low.tolist(), high.tolist())
    top = {key: interval_of(figures[key], len(true)) for key in figures if key.startswith("top_")}
    return {
        "accuracy": interval_of(figures["accuracy"], len(true)),
        "balanced_accuracy": balanced,
        **top,
        "macro avg f1-score": macro,
        "weighted avg f1-score": weighted,
        "classes f1-score": dict(zip(figures["classes"], f1)),
        "museums": {
            museum: interval_of(row["accuracy"], row["support"])
            for museum, row in figures["museums"].items()
        },
    }


def span(interval, scale=100):
    """An interval as it is printed: of fractions in percent, or with scale 1 as they are."""
    digits = 1 if scale == 100 else 2
    return " to ".join(f"{scale * end:.{digits}f}" for end in interval)


def print_report(figures, dataset):
    """Per class, per museum, and the averages, each with its 95% interval; the study's figure beside it."""
    keys = ("precision", "recall", "f1-score")

    def cells(row, interval):
        return [f"{row[key]:.2f}" for key in keys] + [span(interval, 1), f"{row['support']:.0f}"]

    study, sure = dataset.study_cell, figures["intervals"]
    official = len(dataset.labels) == len(TEST_F1)
    rows = []
    for index, label in enumerate(dataset.labels):
        figure = f"{TEST_F1[index]:.2f}" if official else "-"
        row = cells(figures["classes"][label], sure["classes f1-score"][label])
        rows.append((label, *row, *study(figure)))
    for name in ("macro avg", "weighted avg"):
        row = cells(figures[name], sure[f"{name} f1-score"])
        rows.append((name, *row, *study(f"{TEST_FIGURES[name]['f1-score']:.2f}")))
    header = ("class" if dataset.in_folders else "medium", *keys, "95%", "support")
    print_table((*header, *study("study's f1, MAMe")), rows)
    print()
    rows = []
    for museum, row in figures["museums"].items():
        ours = percent(row["accuracy"]), span(sure["museums"][museum])
        rows.append((f"museum: {museum}", *ours, *study("-"), row["support"]))
    known = {"accuracy": percent(TEST_FIGURES["accuracy"])}
    for key in (key for key in figures if key.endswith("accuracy")):
        name = key.replace("top_", "top-").replace("_", " ")
        row = (name, percent(figures[key]), span(sure[key]), *study(known.get(key, "-")), figures["images"])
        rows.append(row)
    print_table(("", "ours", "95% interval", *study("study, MAMe"), "images"), rows)


def write_report(out, run, dataset, evaluated, **about):
    """Write metrics.json, predictions.csv and confusion_matrix.png into the folder `out`.

    evaluated: what `evaluate` returns. about: more for metrics.json.
    """
    figures, files, true, probabilities, museums = evaluated
    rows = []
    for number, file in enumerate(files):
        row = {"file": file, "museum": museums[number], "true": dataset.labels[true[number]]}
        row |= ranking_row(ranking(probabilities[number], dataset.labels))
        rows.append({**row, "dataset": dataset.name})
    write_csv(out / "predictions.csv", rows)
    title = f"{run.folder.name}, test: {percent(figures['accuracy'])} of {figures['images']} images"
    counts = np.array(figures["confusion_matrix"])
    plot_confusion(counts, dataset.labels, out / "confusion_matrix.png", title, dataset.notice)
    about = {"run": run.folder.name, "dataset": describe_dataset(dataset), **about}
    write_json(out / "metrics.json", {**about, **figures})


# Two runs --------------------------------------------------------------------------------


def read_answers(path):
    """{file: (true class, whether it was told right)} of a predictions.csv."""
    rows = read_csv(path, "test the run anew")
    places = [rows[0].index(name) for name in ("file", "true", "predicted_1")]
    return {row[places[0]]: (row[places[1]], row[places[1]] == row[places[2]]) for row in rows[1:]}


def compare_answers(first, second, labels):
    """How two classifiers differ on the images that both were tested on.

    first, second: as `read_answers` gives. Returns (accuracies, rows): the accuracy of each, and for all
    images and for each class a dict with images, first_alone, second_alone (that many it alone has right)
    and p: exact McNemar, that of a class multiplied by the number of classes (Bonferroni), at most 1.
    """
    files = [file for file in first if file in second]
    true = np.array([first[file][0] for file in files])
    right, other = (np.array([answers[file][1] for file in files], bool) for answers in (first, second))
    rows = []
    for name, here in [("all", np.ones(len(files), bool)), *((label, true == label) for label in labels)]:
        one, two, p = mcnemar(right[here], other[here])
        p = p if name == "all" else min(1.0, p * len(labels))
        row = {"class": name, "images": int(here.sum()), "first_alone": one, "second_alone": two, "p": p}
        rows.append(row)
    return (float(right.mean()), float(other.mean())), rows


def print_comparison(names, accuracies, rows):
    """What `compare_answers` found, the classes that differ most first."""
    total, *classes = rows
    for name, accuracy in zip(names, accuracies):
        sure = interval_of(accuracy, total["images"])
        print(f"  {name}: {percent(accuracy)} ({span(sure)}) of {total['images']} images")
    classes.sort(key=lambda row: (row["p"], -abs(row["first_alone"] - row["second_alone"])))
    print_table(
        ("right", "images", "the first alone", "the second alone", "p"),
        [
            (row["class"], row["images"], row["first_alone"], row["second_alone"], f"{row['p']:.3g}")
            for row in [total, *classes]
        ],
    )
    print("(p: exact McNemar test; that of a class is multiplied by the number of classes)")
    if total["p"] < 0.05:
        print(f"They differ: {names[int(total['first_alone'] < total['second_alone'])]} is better.")
    else:
        print("No difference is seen (p is 0.05 or more).")


# Explanation -----------------------------------------------------------------------------


def explain_test(out, run, dataset, evaluated, network):
    """Draw the most confident mistakes of the test split, and why, into the folder `out`."""
    figures, files, true, probabilities, _ = evaluated
    predicted = probabilities.argmax(axis=1)
    confidence = probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != true)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    if len(wrong):
        mistakes = [
            (
                dataset.image_folder / files[row],
                dataset.labels[true[row]],
                dataset.labels[predicted[row]],
                confidence[row],
            )
            for row in wrong
        ]
        title = (
            f"{run.folder.name}: the most confident of {len(wrong)} mistakes on {len(files)} test images"
        )
        drawn = plot_gallery(out / "gallery.png", mistakes, title, dataset.notice)
        print(f"{drawn} mistakes drawn in {out}/gallery.png")
    if not run.is_network:
        explain_layers(out, run)
        return
    chosen = wrong[: GALLERY_ROWS * GALLERY_COLUMNS]
    paths = [dataset.image_folder / files[row] for row in chosen]
    images = np.array([decode_image(path, run.image_size) for path in paths], "uint8")
    rankings = [ranking(probabilities[row], dataset.labels) for row in chosen]
    explain_pictures(out / "explained", network, images, dict(zip(paths, rankings)), dataset.notice)


def explain_layers(out, run):
    """Draw the importance of each layer for a forest or a linear classifier."""
    pipeline, columns = load_pipeline(run.folder / "pipeline.skops"), run.config["features"]["layers"]
    shares = layer_importance(pipeline, columns, run.metrics["layers"])
    title = f"{run.folder.name}: which layers it relies on"
    notice = run.config["dataset"]["notice"]
    plot_importance(out / "layer_importance.png", *shares, title, notice)
    print(f"The importance of each layer is drawn in {out}/layer_importance.png")


def explain_pictures(out, network, images, rankings, notice, first=1):
    """Draw Grad-CAM of each picture into the folder `out`, numbered from `first`.

    images: uint8 (n, size, size, 3). rankings: {file: its `ranking`}, in their order.
    """
    if not rankings:
        return
    out.mkdir(parents=True, exist_ok=True)
    maps = np.concatenate([grad_cam(network, images[n : n + 32]) for n in range(0, len(images), 32)])
    drawn = progress(zip(rankings.items(), maps), "drawing", len(rankings), " pictures")
    for number, ((path, ranked), heat) in enumerate(drawn, first):
        plot_explanation(out / f"{number:04d}-{path.stem}.png", path, heat, ranked, notice)
