"""The report on runs: beside the study's rows, on the test split, and against each other."""

from operator import itemgetter
from pathlib import Path

import numpy as np
from sklearn import metrics

from transfer import predict
from transfer.console import BadInput, percent, print_next, print_notice, print_table
from transfer.explain import explain_layers, explain_test
from transfer.features import ExtractionOptions
from transfer.files import locked, read_csv, read_json, write_csv, write_json
from transfer.plots import plot_confusion
from transfer.runs import dataset_of, describe_dataset, read_run, refuse_other_classes
from transfer.stats import balanced_interval, mcnemar, span, wilson
from transfer.study import (
    FIGURES,
    TEST_ACCURACY,
    TEST_AVERAGES,
    TEST_F1,
    VAL_ACCURACY,
    fine_tuning_rows,
    forest_rows,
)
from transfer.weights import is_published_vgg16

STUDYS_F1 = "study's f1, MAMe"  # a column
FORMATS = {  # of figures on screen; others are shown as they are
    "loss": "{:.4f}",
    "accuracy": "{:.2%}",
    "val_loss": "{:.4f}",
    "val_accuracy": "{:.2%}",
    "precision": "{:.2f}",
    "recall": "{:.2f}",
    "f1-score": "{:.2f}",
    "support": "{:.0f}",
    "p": "{:.3g}",
}


def print_figures(rows, keys):
    """The values that `keys` name of each of `rows`, dicts of figures, as a table."""
    table = [[FORMATS.get(key, "{}").format(row[key]) for key in keys] for row in rows]
    print_table([key.replace("_", " ") for key in keys], table)


def study_rows(run):
    """The study's rows that a run reruns: {row's name: our val_accuracy}. A row of fine-tuning is
    the result of its last stage, so our figure beside it is that stage's."""
    found = run.metrics
    if run.folds:  # the study has a validation split
        return {}
    if run.config["script"] == "finetune.py":
        rows = fine_tuning_rows(run.config["arguments"])
        return {row: found["stages"][last - 1]["val_accuracy"] for last, row in rows}

    ours = {}
    for classifier in found.get("classifiers", []):
        original = is_published_vgg16(run.config["features"]["weights"])
        ours.update(dict.fromkeys(forest_rows(original, classifier), classifier["val_accuracy"]))
    return ours


def print_study_rows(ours, name, studys=VAL_ACCURACY, show=percent):
    """Rows of the study beside our figures {row's name: figure, as `show` takes it} on the dataset
    `name`. studys: {row's name: percent, or None where it has no such row}."""
    rows = [
        (row, f"{studys[row]:.2f}%" if studys[row] else "-", show(figure))
        for row, figure in ours.items()
    ]
    print_table(("row", "study, MAMe", f"ours, {name}"), rows)


def print_run(run):
    """The figures of a finished Run, stage by stage or setting by setting, under its dataset's
    notice; then the study's rows that it reruns, unless it was trained on one's own pictures."""
    found = run.metrics
    print()
    print_notice(found["notice"])
    if run.is_network:
        print_figures(found["stages"], ("trained", "stage", "epoch", *FIGURES))
        print(f"model.keras holds epoch {found['best_epoch']} (stage {found['best_stage']}).")
    else:
        print_figures(found["classifiers"], found["classifiers"][0])

    ours = study_rows(run)
    if ours and (run.dataset_root / "data_256").is_dir():  # MAMe's layout
        print("\nAccuracy on the validation split, beside the study's")
        print_study_rows(ours, found["dataset"])


def print_runs(runs, dataset):
    """All finished runs; then every row of the study beside our best figure on this dataset."""
    rows = []
    best = dict.fromkeys(VAL_ACCURACY)
    for run in runs:
        images = run.config["dataset"]["images"]
        judged = sum(images.values()) if run.folds else images["val"]
        interval = span(wilson(run.metrics["val_accuracy"], judged))
        rows.append({"run": run.folder, **run.metrics, "95% interval": interval})
        if run.fingerprint == dataset.fingerprint:
            for row, figure in study_rows(run).items():
                best[row] = max(best[row] or 0, figure)

    if runs:
        print("Runs")
        print_figures(rows, ("run", "dataset", "accuracy", "val_accuracy", "95% interval"))
    if not dataset.in_folders:
        print("\nThe study's rows ('-': not run)")
        print_study_rows(best, dataset.name)
    print()


def figures_of_test(labels, rows, probabilities, threshold=None):
    """The figures of a test, in the order of metrics.json. labels: names of the classes. rows: a
    data.Split. probabilities: (n, n_classes). threshold: the least confidence of an answer that is
    given; None where all are."""
    true = rows.labels
    predicted = probabilities.argmax(axis=1)
    right = predicted == true

    # of each class that has test images, by number: its name may be one of scikit-learn's own keys
    present = np.unique(true)
    report = metrics.classification_report(
        true, predicted, labels=present, output_dict=True, zero_division=0
    )
    classes = {labels[number]: report[str(number)] for number in present}
    museums = figures_of_museums(rows.museums, right)

    def intervals(groups, key):
        return {name: wilson(row[key], row["support"]) for name, row in groups.items()}

    recalls = intervals(classes, "recall")
    return {
        "images": len(right),
        "accuracy": float(right.mean()),
        "balanced_accuracy": report["macro avg"]["recall"],
        **{name: report[name] for name in TEST_AVERAGES},
        "classes": classes,
        "museums": museums,
        "confusion_matrix": metrics.confusion_matrix(
            true, predicted, labels=range(len(labels))
        ).tolist(),
        **accepted(right, probabilities.max(axis=1), threshold),
        "intervals": {  # 95%
            "accuracy": wilson(right.mean(), len(right)),
            "balanced_accuracy": balanced_interval(
                [(row["recall"], recalls[name]) for name, row in classes.items()]
            ),
            "classes recall": recalls,
            "museums": intervals(museums, "accuracy"),
        },
    }


def figures_of_museums(museums, right):
    """{museum: its figures} of the images from `museums` (n,), "" where nothing is known, that were
    told `right` (n,)."""
    found = {}
    for museum in filter(None, np.unique(museums).tolist()):
        here = right[museums == museum]
        found[museum] = {"accuracy": float(here.mean()), "support": len(here)}
    return found


def accepted(right, confidence, threshold):
    """What --accept gives, for metrics.json: the share of answers of the confidence `threshold` or
    more, and how many of them are right. right, confidence: (n,). {} where `threshold` is None."""
    if threshold is None:
        return {}
    given = confidence >= threshold
    return {
        "accept": {
            "confidence": threshold if np.isfinite(threshold) else None,
            "answered": float(given.mean()),
            "right": float(right[given].mean()) if given.any() else None,
        }
    }


def print_report(figures, dataset):
    """Per class, per average and museum, and over all images, with 95% intervals, beside the
    study's."""
    study = {}
    if len(dataset.labels) == len(TEST_F1):
        study = dict(zip(dataset.labels, TEST_F1))

    # a class may be called like an average
    recalls = figures["intervals"]["classes recall"]
    rows = []
    for name, row in figures["classes"].items():
        beside = {"recall's 95%": span(recalls[name]), STUDYS_F1: study.get(name, "-")}
        rows.append({"class": name, **row, **beside})
    for name, f1 in TEST_AVERAGES.items():
        rows.append({"class": name, **figures[name], "recall's 95%": "-", STUDYS_F1: f1})

    columns = list(rows[0])
    if dataset.in_folders:
        columns.remove(STUDYS_F1)
    print_figures(rows, columns)

    absent = [label for label in dataset.labels if label not in figures["classes"]]
    if absent:
        print(f"  (without a test image, and so in no figure: {', '.join(absent)})")
    print()
    print_accuracies(figures, dataset)


def print_accuracies(figures, dataset):
    """A row for each museum; then balanced accuracy, which the largest classes alone do not decide,
    accuracy, and what --accept gives."""
    intervals = figures["intervals"]
    rows = []
    for museum, row in figures["museums"].items():
        interval = span(intervals["museums"][museum])
        rows.append((f"museum: {museum}", percent(row["accuracy"]), interval, row["support"]))
    for name in ("balanced_accuracy", "accuracy"):
        figure = percent(figures[name])
        rows.append((name.replace("_", " "), figure, span(intervals[name]), figures["images"]))
    if "accept" in figures:
        found = figures["accept"]
        name = f"of the {percent(found['answered'])} answered with --accept"
        rows.append((name, percent(found["right"]), "-", "-"))
    print_table(("", "ours", "95% interval", "images"), rows)
    if not dataset.in_folders:
        print(f"  (the study's accuracy on MAMe: {percent(TEST_ACCURACY)})")


def write_report(folder, name, dataset, rows, probabilities, figures):
    """Write metrics.json, predictions.csv and confusion_matrix.png of what the run `name` answers
    into `folder`. rows: a data.Split of the dataset. probabilities: (n, n_classes). figures: those
    of `figures_of_test`, and whatever else metrics.json is to hold."""
    lines = [
        {
            "file": file,
            "museum": museum,
            "true": dataset.labels[label],
            **predict.ranking_row(predict.ranking(row, dataset.labels)),
            "dataset": dataset.name,
        }
        for file, museum, label, row in zip(rows.files, rows.museums, rows.labels, probabilities)
    ]
    write_csv(folder / "predictions.csv", lines)

    title = f"{name}, {folder.name}: {percent(figures['accuracy'])} of {figures['images']} images"
    counts = np.array(figures["confusion_matrix"])
    plot_confusion(counts, dataset.labels, folder / "confusion_matrix.png", title, dataset.notice)

    about = {"run": name, "dataset": describe_dataset(dataset)}
    write_json(folder / "metrics.json", about | figures)


def is_of(run, dataset):
    """Whether a run was trained on this dataset, as it is or was."""
    return run.fingerprint == dataset.fingerprint or run.dataset_root == dataset.root.absolute()


def has_folds_of(run, dataset):
    """Whether a run was trained on every picture of this dataset, so that its folds stand for a
    test."""
    return bool(run.folds) and is_of(run, dataset)


def report_folder(dataset, run):
    """Where the test of a run on this dataset is recorded where nothing else is asked for."""
    if has_folds_of(run, dataset):
        return run.folder / "folds"
    if run.fingerprint == dataset.fingerprint:
        return run.folder / "test"
    return run.folder / f"test-{dataset.fingerprint[:8]}"


def evaluate_run(args, dataset, run, out):
    """The figures of a test of a run, whose report is written into the folder `out`, with --explain
    also why it is wrong where it is; of a run that was trained on all pictures those of its folds.
    args: test_model.py's. BadInput where it was trained on other classes."""
    refuse_other_classes(run, dataset)
    if has_folds_of(run, dataset):
        return read_folds(args, dataset, run)

    # the answers, and which of them --accept takes
    asked = dataset.splits["test"].files
    print(f"Testing {run.folder} on {len(asked)} images of the test split", flush=True)
    batch_size = args.batch_size or dataset.defaults["batch_size"]
    options = ExtractionOptions(batch_size, args.cache, args.skip_unreadable)
    rows, probabilities = predict.predict_split(dataset, run, "test", options)
    threshold = predict.acceptance_threshold(args.accept, run, options, dataset)

    figures = {
        "skipped_images": np.setdiff1d(asked, rows.files).tolist(),
        **figures_of_test(dataset.labels, rows, probabilities, threshold),
    }
    with locked(out):
        out.mkdir(exist_ok=True)
        write_report(out, run.folder.name, dataset, rows, probabilities, figures)
        if args.explain:
            rankings = [predict.ranking(row, dataset.labels) for row in probabilities]
            explain_test(out, run, dataset, rows, rankings)
    return figures


def read_folds(args, dataset, run):
    """The figures of a run's folds; with --explain shows the importance of its layers. args:
    test_model.py's."""
    print(
        f"{run.folder} was trained on every picture of {dataset.root}, so that none is left to test"
        f" it on. Its {run.folds} folds: each picture answered by a classifier fitted without it"
    )
    folder = run.folder / "folds"
    if args.explain:
        explain_layers(folder, run)
    threshold = predict.acceptance_threshold(args.accept, run, None)
    confidence, right = predict.read_unseen(run)
    return read_json(folder / "metrics.json") | accepted(right, confidence, threshold)


def compare_runs(args, dataset):
    """Say whether the two runs of --compare differ on the test split of `dataset`, None for their
    own, and on which classes. Those not tested yet are tested first. args: test_model.py's."""
    first, second = map(read_run, args.compare)
    if first.fingerprint != second.fingerprint:
        raise BadInput(
            f"{first.folder} and {second.folder} are of two datasets; name two runs on one."
        )
    dataset = dataset or dataset_of(first, args.seed, args.cache)
    print_notice(dataset.notice)
    answers = [answers_on_test(args, dataset, run) for run in (first, second)]
    accuracies, rows = compare_answers(*answers, dataset.labels)

    # on disk and on screen
    out = Path(args.out or report_folder(dataset, first))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"compared-with-{second.folder.name}.csv"
    write_csv(path, [{**row, "dataset": dataset.name} for row in rows])
    print_comparison(args.compare, accuracies, rows)
    print(f"\nResults: {path}")
    print_next("test_model.py", run=first.folder, data=dataset.root, explain=True)


def answers_on_test(args, dataset, run):
    """{file: (true class, whether it was told right)} of a run's test, which is made first where it
    was not yet."""
    path = report_folder(dataset, run) / "predictions.csv"
    if not path.exists():
        evaluate_run(args, dataset, run, path.parent)
    _, *rows = read_csv(path, "test the run again")
    return {file: (true, true == predicted) for file, _, true, predicted, *_ in rows}


def compare_answers(first, second, labels):
    """How two classifiers, A and B, differ on the images that both were tested on. first, second:
    of `answers_on_test`. Returns (the accuracy of each, rows): for all images, as the class "", and
    for each class how many each alone has right, and p: exact McNemar, for a class times their
    number (Bonferroni)."""
    # whether A is right, and whether B is, of each image
    pairs = {label: [] for label in ("", *labels)}  # a class may be called 'all'
    for file, (true, right) in first.items():
        if file in second:
            pair = (right, second[file][1])
            pairs[""].append(pair)
            pairs[true].append(pair)

    rows = []
    for label, told in pairs.items():
        only_a = told.count((True, False))
        only_b = told.count((False, True))
        tests = len(labels) if label else 1
        rows.append(
            {
                "class": label,
                "images": len(told),
                "only_A_right": only_a,
                "only_B_right": only_b,
                "p": min(1.0, mcnemar(only_a, only_b) * tests),
            }
        )
    return np.mean(pairs[""], axis=0), rows


def print_comparison(folders, accuracies, rows):
    """What `compare_answers` found of the runs in two folders, the surest difference first."""
    total, *classes = rows
    for letter, folder, accuracy in zip("AB", folders, accuracies):
        print(f"  {letter} = {folder}: {percent(accuracy)} of {total['images']} images")

    classes.sort(key=itemgetter("p"))
    print_figures([total | {"class": "all"}, *classes], total)

    print("(p: exact McNemar test; that of a class is multiplied by the number of classes)")
    if total["p"] < 0.05:
        print(f"They differ: {folders[np.argmax(accuracies)]} is better.")
    else:
        print("No difference is seen (p is 0.05 or more).")
