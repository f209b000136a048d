"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run
    python test_model.py --explain        and why: its most confident mistakes, what it looks at
    python test_model.py --predict IMAGE_OR_FOLDER ...    what it says of any pictures

Writes to RUN/test/: metrics.json (per class, per museum, averages), predictions.csv (one row a file)
and confusion_matrix.png; with --explain gallery.png, and for networks explained/*.png (Grad-CAM), for
forests and linear classifiers layer_importance.png. --predict writes predictions.csv and predictions.jsonl
to RUN/predicted/. Not a pytest file.
"""

import argparse
from argparse import Namespace
from itertools import count
from pathlib import Path

import numpy as np

from common import add_shared_arguments, batches, import_keras, probabilities_of
from dataset import decode_image, load_dataset, load_images
from features import (
    check_supports,
    extract_features,
    forest_rows,
    load_features,
    load_pipeline,
    pipeline_probabilities,
)
from files import BadInput, locked, progress, read_json, write_csv, write_json
from prediction import (
    TOP,
    list_pictures,
    load_classifier,
    predict_files,
    print_predictions,
    ranking,
    ranking_row,
    write_predictions,
)
from recipes import fine_tuning_rows
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
from study import FINE_TUNING_ROWS, FOREST_ROWS, TEST_F1, TEST_FIGURES
from weights import load_model


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("what is tested")
    group.add_argument("--run", metavar="RUN", help="default: the best validation accuracy of all runs")
    group.add_argument("--runs", default="runs", metavar="DIR", help="default: %(default)s")
    group.add_argument(
        "--predict",
        nargs="+",
        metavar="PATH",
        help="leave the test split alone and say what these pictures, or all in these folders, are",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="draw why: Grad-CAM of each picture or mistake (networks), a gallery of the most confident "
        "mistakes, the importance of each layer (forests)",
    )
    group.add_argument(
        "--flips",
        action=argparse.BooleanOptionalAction,
        help="test a network on each picture and its mirror image (default: as its recipe says)",
    )
    add_shared_arguments(parser)
    return parser.parse_args(argv)


# The table of runs -----------------------------------------------------------------------


def study_rows(config, metrics):
    """The study's rows that a run reruns: [(row's name, the study's percent, our fraction)].

    A row of fine-tuning is the result of its last step, so our figure beside it is that step's.
    """
    arguments = config["arguments"]
    if config["script"] == "finetune.py":
        ours = metrics["steps"][-1]["val_accuracy"]
        return [(row["row"], row["figures"][3], ours) for row in fine_tuning_rows(arguments)]
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
    if dataset.in_folders:
        print(flush=True)
        return
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
    """(folder, config) of --run, or of the best val_accuracy on this dataset (on any where None is given);
    None where there is no run."""
    if args.run:
        folder = Path(args.run)
        if not (folder / "metrics.json").exists():
            raise BadInput(f"{folder} is not a finished run; `python test_model.py` lists those there are.")
        return folder, read_json(folder / "config.json")
    if dataset:
        runs = [run for run in runs if run[1]["dataset"]["fingerprint"] == dataset.fingerprint]
    if not runs:
        return None
    folder, config, _ = max(runs, key=lambda run: run[2]["val_accuracy"])
    return folder, config


# Prediction ------------------------------------------------------------------------------


def takes_flips(args, config):
    """Whether each picture's mirror image is looked at too: --flips, or as the run's recipe says."""
    return config["arguments"].get("flips", False) if args.flips is None else args.flips


def predict_network(args, dataset, folder, config):
    """{file: probabilities (n_classes,)} of a network for the test split."""
    keras = import_keras()
    keras.utils.set_random_seed(args.seed)
    model = load_model(folder)
    dataset, images, skipped = load_images(
        dataset, ("test",), config["arguments"]["image_size"], args.cache, args.skip_unreadable
    )
    flips = takes_flips(args, config)
    split = dataset.splits["test"]
    source = batches(images["test"], split.labels, args.batch_size)
    predictions = {}
    for index in progress(range(len(source)), "testing"):
        inputs, _ = source[index]
        probabilities = probabilities_of(model, inputs, flips)
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
    settings |= {"devices": None, "cache": args.cache, "skip_unreadable": args.skip_unreadable}
    if not (features / "test.npy").exists():
        print(f"Extracting the features of the test split into {features}/", flush=True)
    extract_features(Namespace(**settings), dataset, layers, ("test",), features)
    notes = read_json(features / "features.json")
    if notes["weights_sha256"] != config["features"]["weights_sha256"]:
        raise BadInput(
            f"The features in {features} are not those that {folder} was fitted on; fit it anew."
        )
    x, _, files = load_features(features, dataset, "test", row["layers"])
    probabilities = pipeline_probabilities(pipeline, x, len(dataset.labels))
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
            for museum in np.unique(museums[museums != ""])
        },
        "confusion_matrix": confusion_matrix(true, predicted, labels=classes).tolist(),
    }
    return figures, files, true, probabilities, museums


def print_report(figures, dataset):
    """Per class, per museum, and the averages, each beside the study's figure where it has one."""
    keys = ("precision", "recall", "f1-score", "support")

    def cells(row):
        return [f"{row[key]:.2f}" for key in keys[:3]] + [f"{row['support']:.0f}"]

    study = dataset.study_cell
    official = len(dataset.labels) == len(TEST_F1)
    rows = []
    for index, label in enumerate(dataset.labels):
        figure = f"{TEST_F1[index]:.2f}" if official else "-"
        rows.append((label, *cells(figures["classes"][label]), *study(figure)))
    for name in ("macro avg", "weighted avg"):
        rows.append((name, *cells(figures[name]), *study(f"{TEST_FIGURES[name]['f1-score']:.2f}")))
    print_table(("class" if dataset.in_folders else "medium", *keys, *study("study's f1, MAMe")), rows)
    print()
    rows = [
        (f"museum: {museum}", percent(row["accuracy"]), *study("-"), row["support"])
        for museum, row in figures["museums"].items()
    ]
    total = figures["images"]
    rows.append(
        ("accuracy", percent(figures["accuracy"]), *study(percent(TEST_FIGURES["accuracy"])), total)
    )
    rows.append(("balanced accuracy", percent(figures["balanced_accuracy"]), *study("-"), total))
    rows.append((f"top-{TOP} accuracy", percent(figures[f"top_{TOP}_accuracy"]), *study("-"), total))
    print_table(("", "ours", *study("study, MAMe"), "images"), rows)


def write_report(out, run, dataset, evaluated, skipped, flips):
    """Write metrics.json, predictions.csv and confusion_matrix.png into the folder `out`."""
    figures, files, true, probabilities, museums = evaluated
    rows = []
    for number, file in enumerate(files):
        row = {"file": file, "museum": museums[number], "true": dataset.labels[true[number]]}
        row |= ranking_row(ranking(probabilities[number], dataset.labels))
        rows.append({**row, "dataset": dataset.name})
    write_csv(out / "predictions.csv", rows)
    title = f"{run.name}, test: {percent(figures['accuracy'])} of {figures['images']} images"
    counts = np.array(figures["confusion_matrix"])
    plot_confusion(counts, dataset.labels, out / "confusion_matrix.png", title, dataset.notice)
    about = {"run": run.name, "dataset": describe_dataset(dataset), "skipped_images": skipped}
    about["flips"] = flips
    write_json(out / "metrics.json", {**about, **figures})


# Explanation -----------------------------------------------------------------------------


def explain_test(out, run, dataset, config, evaluated):
    """Draw the most confident mistakes of the test split, and why, into the folder `out`."""
    from explain import GALLERY_COLUMNS, GALLERY_ROWS, plot_gallery

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
        title = f"{run.name}: the most confident of its {len(wrong)} mistakes on {len(files)} test images"
        drawn = plot_gallery(out / "gallery.png", mistakes, title, dataset.notice)
        print(f"{drawn} mistakes drawn in {out}/gallery.png")
    if (run / "pipeline.skops").exists():
        explain_layers(out, run, config, dataset.notice)
        return
    chosen = wrong[: GALLERY_ROWS * GALLERY_COLUMNS]
    size, model = config["arguments"]["image_size"], load_model(run)
    paths = [dataset.image_folder / files[row] for row in chosen]
    images = np.array([decode_image(path, size) for path in paths], "uint8")
    rankings = [ranking(probabilities[row], dataset.labels) for row in chosen]
    explain_pictures(out / "explained", model, paths, images, rankings, dataset.notice)


def explain_layers(out, run, config, notice):
    """Draw the importance of each layer for a forest or a linear classifier."""
    from explain import layer_importance, plot_importance

    layers = read_json(run / "metrics.json")["layers"]
    shares = layer_importance(load_pipeline(run / "pipeline.skops"), config["features"]["layers"], layers)
    title = f"{run.name}: which layers it relies on"
    plot_importance(out / "layer_importance.png", *shares, title, notice)
    print(f"The importance of each layer is drawn in {out}/layer_importance.png")


def explain_pictures(out, model, paths, images, rankings, notice, first=1):
    """Draw Grad-CAM of each picture into the folder `out`, numbered from `first`."""
    from explain import grad_cam, plot_explanation

    if not len(paths):
        return
    out.mkdir(parents=True, exist_ok=True)
    maps = np.concatenate([grad_cam(model, images[n : n + 32]) for n in range(0, len(images), 32)])
    drawn = progress(zip(paths, maps, rankings), "drawing", len(paths), " pictures")
    for number, (path, heat, ranked) in enumerate(drawn, first):
        plot_explanation(out / f"{number:04d}-{path.stem}.png", path, heat, ranked, notice)


# Any pictures ----------------------------------------------------------------------------


def predict(args, runs):
    """Say what the pictures of --predict are; with --explain draw why."""
    dataset = load_dataset(args.data, args.seed) if args.data else None
    chosen = choose_run(args, runs, dataset)
    if chosen is None:
        raise BadInput(
            f"There is no finished run in {args.runs}/ that could predict; "
            "make one with `python finetune.py`, or name one with --run."
        )
    folder, config = chosen
    about, arguments = config["dataset"], config["arguments"]
    print_notice(about["notice"])
    files = list_pictures(args.predict)
    validation = percent(read_json(folder / "metrics.json")["val_accuracy"])
    print(
        f"{folder}, trained on {about['name']} (val accuracy {validation}), says of {len(files)} pictures:"
    )
    pipeline = (folder / "pipeline.skops").exists()
    size = config["features"]["image_size"] if pipeline else arguments["image_size"]
    out = Path(args.out) if args.out else new_folder(folder / "predicted")
    if (out / "predictions.jsonl").exists():
        raise BadInput(f"{out} holds predictions already; name a new folder with --out.")
    classify, model = load_classifier(folder, config, takes_flips(args, config))
    rankings, unreadable = {}, {}
    with locked(out / LOCK):
        batch_size = args.batch_size or arguments["batch_size"]
        for good, images, probabilities, bad in predict_files(files, classify, size, batch_size):
            found = [ranking(row, config["labels"]) for row in probabilities]
            if args.explain and not pipeline:
                place = out / "explained"
                explain_pictures(place, model, good, images, found, about["notice"], len(rankings) + 1)
            rankings |= dict(zip(good, found))
            unreadable |= bad
        write_predictions(out, folder, about["name"], rankings, unreadable)
    print()
    print_predictions(rankings, unreadable)
    print()
    if args.explain and pipeline:
        print("Grad-CAM is of networks; for this classifier there is the importance of its layers.")
        explain_layers(out, folder, config, about["notice"])
    print_notice(about["notice"])
    if not rankings:
        raise BadInput(f"None of the {len(files)} pictures could be read (see above).")
    explained = ", explained/*.png" * (args.explain and not pipeline)
    print(f"Results: {out}/ (predictions.csv, predictions.jsonl{explained})")
    if not args.explain:
        print(f"Next: python test_model.py --run {folder} --predict {args.predict[0]} --explain")


def new_folder(path):
    """`path`, or the first of path-2, path-3 ... that is not there yet."""
    names = (path.with_name(f"{path.name}-{n}") if n > 1 else path for n in count(1))
    return next(folder for folder in names if not folder.exists())


def main(argv=None):
    args = parse_args(argv)
    runs = finished_runs(args.runs)
    if args.predict:
        predict(args, runs)
        return
    if args.run and args.data is None and (Path(args.run) / "config.json").exists():
        args.data = read_json(Path(args.run) / "config.json")["dataset"]["folder"]
    dataset = load_dataset(args.data, args.seed)
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
        write_report(out, folder, dataset, evaluated, skipped, not forest and takes_flips(args, config))
        if args.explain:
            explain_test(out, folder, dataset, config, evaluated)
    print()
    print_report(evaluated[0], dataset)
    print()
    print_notice(dataset.notice)
    print(f"Results: {out}/ (metrics.json, predictions.csv, confusion_matrix.png)")
    explain = "" if args.explain else f", and python test_model.py --run {folder} --explain shows why"
    print(f"Next: open the confusion matrix: which classes are taken for which{explain}")


if __name__ == "__main__":
    run_script(main)
