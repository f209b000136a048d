"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run
    python test_model.py --compare RUN RUN    whether two runs differ (exact McNemar test)
    python test_model.py --explain        and why: its most confident mistakes, what it looks at
    python test_model.py --predict IMAGE_OR_FOLDER ...    what it says of any pictures

Writes to RUN/test/: metrics.json (per class, per museum, averages), predictions.csv (one row a file)
and confusion_matrix.png; with --explain gallery.png, and for networks explained/*.png (Grad-CAM), for
forests and linear classifiers layer_importance.png. --predict writes predictions.csv and predictions.jsonl
to RUN/predicted/. Not a pytest file.
"""

from pathlib import Path

import numpy as np

from common import add_shared_arguments, resolve_arguments, script_parser
from transfer.classifiers import load_pipeline, pipeline_probabilities
from transfer.dataset import load_dataset
from transfer.features import Extraction, check_supports, extract_features, load_features
from transfer.files import LOCK, locked, read_json, write_csv
from transfer.images import load_images
from transfer.prediction import (
    list_pictures,
    load_classifier,
    predict_files,
    print_predictions,
    ranking,
    source_of,
    write_predictions,
)
from transfer.report import (
    compare_answers,
    evaluate,
    explain_layers,
    explain_pictures,
    explain_test,
    print_comparison,
    print_report,
    print_runs,
    read_answers,
    write_report,
)
from transfer.runs import finished_runs, numbered, read_run
from transfer.screen import BadInput, percent, print_configuration, print_notice, progress, run_script


def parse_args(argv=None):
    parser = script_parser(__doc__)
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
        "--compare",
        nargs=2,
        metavar="RUN",
        help="say whether two runs differ on the test split, and on which classes",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="draw why: Grad-CAM of each picture or mistake (networks), a gallery of the most confident "
        "mistakes, the importance of each layer (forests)",
    )
    group.add_argument(
        "--flips",
        action="store_true",
        help="have a network look at each picture and its mirror image (helps where --augment trained it)",
    )
    add_shared_arguments(parser)
    return parser.parse_args(argv)


def choose_run(named, runs, dataset):
    """The run that --run names, or the one of the best val_accuracy on this dataset (on any where None is
    given); None where there is no run."""
    if named:
        return read_run(named)
    if dataset:
        runs = [run for run in runs if run.fingerprint == dataset.fingerprint]
    return max(runs, key=lambda run: run.metrics["val_accuracy"], default=None)


# The test split --------------------------------------------------------------------------


def predict_network(dataset, classify, batch_size):
    """{file: probabilities (n_classes,)} of a network for the test split."""
    split, predictions = dataset.splits["test"], {}
    for start in progress(range(0, len(split.files), batch_size), "testing"):
        rows = np.arange(start, min(start + batch_size, len(split.files)))
        predictions.update(zip(split.files[rows].tolist(), classify(split.images[rows])))
    return predictions


def predict_pipeline(dataset, run, how):
    """{file: probabilities (n_classes,)} of a pipeline for the test split, its features extracted first."""
    stored = run.config["features"]
    folder, pipeline = Path(stored["folder"]), load_pipeline(run.folder / "pipeline.skops")
    extract_features(source_of(stored), dataset, ("test",), folder, how)
    if read_json(folder / "features.json")["weights_sha256"] != stored["weights_sha256"]:
        raise BadInput(
            f"The features in {folder} are not those that {run.folder} was fitted on; fit it anew."
        )
    features, _, files = load_features(folder, dataset, "test", run.metrics["layers"])
    return dict(zip(files.tolist(), pipeline_probabilities(pipeline, features, len(dataset.labels))))


def test(args, runs):
    """Take a run to the test split."""
    dataset = load_dataset(args.data, args.seed)
    run = choose_run(args.run, runs, dataset)
    if run is None:
        print_notice(dataset.notice)
        print_runs(runs, dataset)
        print(f"There is no finished run on {dataset.root} in {args.runs}/ yet, so nothing is tested.")
        print("Next: python finetune.py --head iii --unfreeze stepped")
        return
    if run.config["labels"] != dataset.labels:
        raise BadInput(
            f"{run.folder} was trained on other classes than those of {dataset.root}; name its --data."
        )
    if args.image_size not in (None, run.image_size):
        raise BadInput(f"{run.folder} takes images of {run.image_size} pixels; leave --image-size out.")
    out = Path(args.out or test_folder(dataset, run))
    args.run, args.image_size, args.out = run.folder, run.image_size, out
    resolve_arguments(args, dataset)
    print_configuration(args, dataset)
    print_runs(runs, dataset)
    figures = test_run(args, dataset, run, out)
    print()
    print_report(figures, dataset)
    print()
    print_notice(dataset.notice)
    print(f"Results: {out}/ (metrics.json, predictions.csv, confusion_matrix.png)")
    explain = "" if args.explain else f", and python test_model.py --run {run.folder} --explain shows why"
    print(f"Next: open the confusion matrix: which classes are taken for which{explain}")


def test_folder(dataset, run):
    """Where the test of a run on this dataset is recorded where nothing else is asked for."""
    same = run.fingerprint == dataset.fingerprint
    return run.folder / ("test" if same else f"test-{dataset.fingerprint[:8]}")


def test_run(args, dataset, run, out):
    """Test a run and write its report into the folder `out`; returns the figures."""
    batch_size = args.batch_size or dataset.defaults["batch_size"]
    print(
        f"Testing {run.folder} on {len(dataset.splits['test'].files)} images of the test split", flush=True
    )
    flips, network = args.flips and run.is_network, None
    if run.is_network:
        classify, network = load_classifier(run, flips)
        readable = load_images(dataset, ("test",), run.image_size, args.cache, args.skip_unreadable)
        predictions = predict_network(readable, classify, batch_size)
    else:
        how = Extraction(batch_size, args.cache, args.skip_unreadable)
        predictions = predict_pipeline(dataset, run, how)
    evaluated = evaluate(dataset, predictions)
    check_supports(dataset, "test", evaluated[2], args.skip_unreadable)
    skipped = [file for file in dataset.splits["test"].files.tolist() if file not in predictions]
    with locked(out / LOCK):
        write_report(out, run, dataset, evaluated, skipped_images=skipped, flips=flips)
        if args.explain:
            explain_test(out, run, dataset, evaluated, network)
    return evaluated[0]


def compare(args):
    """Say whether the two runs of --compare differ on the test split; those not tested yet are first."""
    first, second = (read_run(folder) for folder in args.compare)
    if first.fingerprint != second.fingerprint:
        raise BadInput(
            f"{first.folder} and {second.folder} are of two datasets; name runs on the same one."
        )
    dataset = load_dataset(args.data or first.config["dataset"]["folder"], args.seed)
    print_notice(dataset.notice)
    answers = []
    for run in (first, second):
        tested = test_folder(dataset, run)
        if not (tested / "predictions.csv").exists():
            test_run(args, dataset, run, tested)
        answers.append(read_answers(tested / "predictions.csv"))
    accuracies, rows = compare_answers(*answers, dataset.labels)
    name = f"compared-with-{second.folder.name}.csv"
    out = Path(args.out or test_folder(dataset, first)) / name
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, [{**row, "dataset": dataset.name} for row in rows])
    print()
    print_comparison([str(first.folder), str(second.folder)], accuracies, rows)
    print(f"\nResults: {out}")
    print(f"Next: python test_model.py --run {first.folder} --explain")


# Any pictures ----------------------------------------------------------------------------


def predict(args, runs):
    """Say what the pictures of --predict are; with --explain draw why."""
    dataset = load_dataset(args.data, args.seed) if args.data else None
    run = choose_run(args.run, runs, dataset)
    if run is None:
        raise BadInput(
            f"There is no finished run in {args.runs}/ that could predict; "
            "make one with `python finetune.py`, or name one with --run."
        )
    name, notice = run.config["dataset"]["name"], run.config["dataset"]["notice"]
    print_notice(notice)
    files = list_pictures(args.predict)
    validation = percent(run.metrics["val_accuracy"])
    print(f"{run.folder}, trained on {name} (val accuracy {validation}), says of {len(files)} pictures:")
    out = Path(args.out or next(p for p in numbered(run.folder / "predicted") if not p.exists()))
    if (out / "predictions.jsonl").exists():
        raise BadInput(f"{out} holds predictions already; name a new folder with --out.")
    classify, network = load_classifier(run, args.flips)
    explain_each = args.explain and run.is_network
    rankings, unreadable = {}, {}
    with locked(out / LOCK):
        batch_size = args.batch_size or run.config["arguments"]["batch_size"]
        for good, images, probabilities, bad in predict_files(files, classify, run.image_size, batch_size):
            found = {file: ranking(row, run.config["labels"]) for file, row in zip(good, probabilities)}
            if explain_each:
                explain_pictures(out / "explained", network, images, found, notice, len(rankings) + 1)
            rankings |= found
            unreadable |= bad
        write_predictions(out, run.folder, name, rankings, unreadable)
    print()
    print_predictions(rankings, unreadable)
    print()
    if args.explain and not run.is_network:
        print("Grad-CAM is of networks; for this classifier there is the importance of its layers.")
        explain_layers(out, run)
    print_notice(notice)
    if not rankings:
        raise BadInput(f"None of the {len(files)} pictures could be read (see above).")
    explained = ", explained/*.png" * explain_each
    print(f"Results: {out}/ (predictions.csv, predictions.jsonl{explained})")
    if not args.explain:
        print(f"Next: python test_model.py --run {run.folder} --predict {args.predict[0]} --explain")


def main(argv=None):
    args = parse_args(argv)
    if args.compare:
        compare(args)
        return
    runs = finished_runs(args.runs)
    if args.predict:
        predict(args, runs)
        return
    if args.run and args.data is None and (Path(args.run) / "config.json").exists():
        args.data = read_json(Path(args.run) / "config.json")["dataset"]["folder"]
    test(args, runs)


if __name__ == "__main__":
    run_script(main)
