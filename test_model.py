"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run

Writes to RUN/test/: metrics.json (per class, per museum, averages), predictions.csv (one row a file)
and confusion_matrix.png. Works for networks and for forests. Not a pytest file.
"""

import argparse
from argparse import Namespace
from pathlib import Path

import numpy as np

from common import add_shared_arguments, batches, import_keras
from dataset import load_dataset, load_images
from features import check_supports, extract_features, forest_rows, load_features, load_pipeline
from files import BadInput, locked, progress, read_json, write_csv, write_json
from record import (
    LOCK,
    describe_dataset,
    finished_runs,
    percent,
    plot_confusion,
    print_notice,
    print_table,
    run_script,
)
from study import FINE_TUNING_ROWS, FOREST_ROWS, TEST_F1, TEST_FIGURES, rows_of
from weights import load_model

TOP = 5


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is tested")
    group.add_argument("--run", metavar="RUN", help="default: the best validation accuracy of all runs")
    group.add_argument("--runs", default="runs", metavar="DIR", help="default: %(default)s")
    add_shared_arguments(parser)
    return parser.parse_args(argv)


# The table of runs -----------------------------------------------------------------------


def study_rows(config, metrics):
    """The study's rows that a run reruns: [(row's name, the study's percent, our fraction)].

    A row of fine-tuning is the result of its last step, so our figure beside it is that step's.
    """
    arguments = config["arguments"]
    if config["script"] == "finetune.py":
        keys = ("head", "unfreeze", "augment", "final_augment")
        ours = metrics["steps"][-1]["val_accuracy"]
        rows = rows_of(FINE_TUNING_ROWS, **{key: arguments[key] for key in keys})
        return [(row["row"], row["figures"][3], ours) for row in rows]
    return [
        (row["row"], row["val_accuracy"], forest["val_accuracy"])
        for forest in metrics.get("forests", [])
        for row in forest_rows(config["features"]["model"], forest)
    ]


def print_runs(runs, dataset):
    """All finished runs, then every row of the study with our figure on this dataset."""
    if runs:
        print("Runs")
        rows = []
        for folder, config, metrics in runs:
            study = " / ".join(f"{percentage:.2f}%" for _, percentage, _ in study_rows(config, metrics))
            figures = (percent(metrics["accuracy"]), percent(metrics["val_accuracy"]))
            rows.append((folder, config["dataset"]["name"], *figures, study or "-"))
        print_table(("run", "dataset", "accuracy", "val accuracy", "study, MAMe"), rows)
    ours = {}
    for _, config, metrics in runs:
        if config["dataset"]["fingerprint"] == dataset.fingerprint:
            for row, _, figure in study_rows(config, metrics):
                ours[row] = max(ours.get(row, 0), figure)
    print("\nThe study's rows")
    header = ("row", "study, MAMe", f"ours, {dataset.name}")
    rows = [(row["row"], row["figures"][3]) for row in FINE_TUNING_ROWS]
    rows += [(row["row"], row["val_accuracy"]) for row in FOREST_ROWS]
    absent = "not measured here" if dataset.notice is None else "not run"
    print_table(
        header,
        [(name, f"{value:.2f}%", percent(ours[name]) if name in ours else absent) for name, value in rows],
    )
    print(flush=True)


def choose_run(args, runs, dataset):
    """(folder, config) of --run, or of the best val_accuracy on this dataset; None where none is."""
    if args.run:
        folder = Path(args.run)
        if not (folder / "metrics.json").exists():
            raise BadInput(f"{folder} is not a finished run; `python test_model.py` lists those there are.")
        return folder, read_json(folder / "config.json")
    here = [run for run in runs if run[1]["dataset"]["fingerprint"] == dataset.fingerprint]
    if not here:
        return None
    folder, config, _ = max(here, key=lambda run: run[2]["val_accuracy"])
    return folder, config


# Prediction ------------------------------------------------------------------------------


def predict_network(args, dataset, folder, config):
    """{file: probabilities (n_classes,)} of a network for the test split."""
    keras = import_keras()
    keras.utils.set_random_seed(args.seed)
    model = load_model(folder)
    dataset, images, skipped = load_images(
        dataset, ("test",), config["arguments"]["image_size"], args.cache, args.skip_unreadable
    )
    split = dataset.splits["test"]
    source = batches(images["test"], split.labels, args.batch_size)
    predictions = {}
    for index in progress(range(len(source)), "testing"):
        inputs, _ = source[index]
        probabilities = np.asarray(model.predict_on_batch(inputs))
        predictions.update(zip(split.files[source.rows(index)].tolist(), probabilities))
    return predictions, skipped


def predict_forest(args, dataset, folder, config):
    """{file: probabilities (n_classes,)} of a forest for the test split, features extracted first."""
    row = read_json(folder / "metrics.json")
    pipeline = load_pipeline(folder / "pipeline.skops")
    features = Path(config["features"]["folder"])
    layers = ",".join(config["features"]["layers"])
    settings = {"image_size": config["features"]["image_size"], "seed": config["features"]["seed"]}
    settings["precision"] = config["features"]["precision"]
    settings |= {"model": config["features"]["model"], "batch_size": args.batch_size}
    settings |= {"cache": args.cache, "skip_unreadable": args.skip_unreadable}
    if not (features / "test.npy").exists():
        import_keras()
        print(f"Extracting the features of the test split into {features}/", flush=True)
    extract_features(Namespace(**settings), dataset, layers, ("test",), features)
    notes = read_json(features / "features.json")
    if notes["weights_sha256"] != config["features"]["weights_sha256"]:
        raise BadInput(
            f"The features in {features} are not those that {folder} was fitted on; fit it anew."
        )
    x, _, files = load_features(features, dataset, "test", row["layers"])
    probabilities = np.zeros((len(files), len(dataset.labels)), "float32")
    probabilities[:, pipeline.classes_] = pipeline.predict_proba(x)
    skipped = sorted(set(dataset.splits["test"].files.tolist()) - set(files.tolist()))
    return dict(zip(files.tolist(), probabilities)), skipped


# The report ------------------------------------------------------------------------------


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
    figures = {
        "images": len(files),
        "accuracy": accuracy_score(true, predicted),
        "balanced_accuracy": balanced_accuracy_score(true, predicted),
        f"top_{TOP}_accuracy": top_k_accuracy_score(
            true, probabilities, k=min(TOP, len(classes) - 1), labels=classes
        ),
        "macro avg": report["macro avg"],
        "weighted avg": report["weighted avg"],
        "classes": {label: report[label] for label in dataset.labels},
        "museums": {
            str(museum): {
                "accuracy": accuracy_score(true[museums == museum], predicted[museums == museum]),
                "support": int((museums == museum).sum()),
            }
            for museum in np.unique(museums)
        },
        "confusion_matrix": confusion_matrix(true, predicted, labels=classes).tolist(),
    }
    return figures, files, true, probabilities, museums


def print_report(figures, dataset):
    """Per class, per museum, and the averages, each beside the study's figure where it has one."""
    keys = ("precision", "recall", "f1-score", "support")

    def cells(row):
        return [f"{row[key]:.2f}" for key in keys[:3]] + [f"{row['support']:.0f}"]

    official = len(dataset.labels) == len(TEST_F1)
    rows = []
    for index, label in enumerate(dataset.labels):
        study = f"{TEST_F1[index]:.2f}" if official else "-"
        rows.append((label, *cells(figures["classes"][label]), study))
    for name in ("macro avg", "weighted avg"):
        rows.append((name, *cells(figures[name]), f"{TEST_FIGURES[name]['f1-score']:.2f}"))
    print_table(("medium", *keys, "study's f1, MAMe"), rows)
    print()
    rows = [
        (f"museum: {museum}", percent(row["accuracy"]), "-", row["support"])
        for museum, row in figures["museums"].items()
    ]
    total = figures["images"]
    rows.append(("accuracy", percent(figures["accuracy"]), percent(TEST_FIGURES["accuracy"]), total))
    rows.append(("balanced accuracy", percent(figures["balanced_accuracy"]), "-", total))
    rows.append((f"top-{TOP} accuracy", percent(figures[f"top_{TOP}_accuracy"]), "-", total))
    print_table(("", "ours", "study, MAMe", "images"), rows)


def write_report(out, run, dataset, evaluated, skipped):
    """Write metrics.json, predictions.csv and confusion_matrix.png into the folder `out`."""
    figures, files, true, probabilities, museums = evaluated
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    rows = []
    for number, file in enumerate(files):
        row = {"file": file, "museum": museums[number], "true": dataset.labels[true[number]]}
        for rank, index in enumerate(ranked[number], 1):
            row[f"predicted_{rank}"] = dataset.labels[index]
            row[f"probability_{rank}"] = f"{probabilities[number, index]:.6f}"
        rows.append({**row, "dataset": dataset.name})
    write_csv(out / "predictions.csv", rows)
    title = f"{run.name}, test: {percent(figures['accuracy'])} of {figures['images']} images"
    counts = np.array(figures["confusion_matrix"])
    plot_confusion(counts, dataset.labels, out / "confusion_matrix.png", title, dataset.notice)
    about = {"run": run.name, "dataset": describe_dataset(dataset), "skipped_images": skipped}
    write_json(out / "metrics.json", {**about, **figures})


def main(argv=None):
    args = parse_args(argv)
    runs = finished_runs(args.runs)
    if args.run and args.data is None and (Path(args.run) / "config.json").exists():
        args.data = read_json(Path(args.run) / "config.json")["dataset"]["folder"]
    dataset = load_dataset(args.data)
    args.batch_size = args.batch_size or dataset.defaults["batch_size"]
    print_notice(dataset.notice)
    print_runs(runs, dataset)

    chosen = choose_run(args, runs, dataset)
    if chosen is None:
        print(f"There is no finished run on {dataset.root} in {args.runs}/ yet, so nothing is tested.")
        print("Next: python finetune.py --head iii --unfreeze stepped")
        return
    folder, config = chosen
    if config["labels"] != dataset.labels:
        raise BadInput(
            f"{folder} was trained on other classes than those of {dataset.root}; name its --data."
        )
    if args.image_size not in (None, config["arguments"]["image_size"]):
        raise BadInput(
            f"{folder} takes images of {config['arguments']['image_size']} pixels; leave --image-size out."
        )
    print(f"Testing {folder} on {len(dataset.splits['test'].files)} images of the test split", flush=True)
    forest = (folder / "pipeline.skops").exists()
    predictions, skipped = (predict_forest if forest else predict_network)(args, dataset, folder, config)
    evaluated = evaluate(dataset, predictions)
    check_supports(dataset, "test", evaluated[2], args.skip_unreadable)

    same = config["dataset"]["fingerprint"] == dataset.fingerprint
    out = Path(args.out) if args.out else folder / ("test" if same else f"test-{dataset.fingerprint[:8]}")
    with locked(out / LOCK):
        write_report(out, folder, dataset, evaluated, skipped)
    print()
    print_report(evaluated[0], dataset)
    print()
    print_notice(dataset.notice)
    print(f"Results: {out}/ (metrics.json, predictions.csv, confusion_matrix.png)")
    print("Next: open the confusion matrix: which mediums are taken for which?")


if __name__ == "__main__":
    run_script(main)
