"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run
    python test_model.py --compare RUN RUN    whether two runs differ (exact McNemar test)
    python test_model.py --explain        and why: its most confident mistakes, what it looks at
    python test_model.py --predict IMAGE_OR_FOLDER ...    classify any pictures

Writes to RUN/test/, with --predict to RUN/predicted/. Not a pytest file.
"""

from pathlib import Path

from transfer import flags
from transfer.console import BadInput, percent, print_configuration, print_notice, run_script


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    add = parser.add_argument_group("what is tested").add_argument
    add("--run", metavar="RUN", help="default: the best validation accuracy of all runs")
    add("--runs", default="runs", metavar="DIR", help="default: %(default)s")
    text = "leave the test split alone and classify these pictures, or all in these folders"
    add("--predict", nargs="+", metavar="PATH", help=text)
    add(
        "--compare",
        nargs=2,
        metavar="RUN",
        help="say whether two runs differ, and on which classes",
    )
    text = (
        "answer where, on the validation split, answers of that confidence were right in this share"
    )
    add("--accept", type=flags.positive_float, metavar="P", help=f"{text}; else say 'unsure'")
    text = "draw why: the most confident mistakes, Grad-CAM (networks), the layers' importance (forests)"
    add("--explain", action="store_true", help=text)
    flags.add_shared_arguments(parser)
    return parser.parse_args(argv)


def choose_run(named, runs, dataset):
    """The run that --run names, or the one of the best val_accuracy on this dataset, as it is or was (on
    any where None is given); None where there is no run."""
    from transfer.runs import read_run

    if named:
        return read_run(named)
    if dataset:
        place = dataset.root.absolute()
        runs = [
            run
            for run in runs
            if dataset.fingerprint == run.fingerprint or place == run.dataset_root
        ]
    return max(runs, key=lambda run: run.metrics["val_accuracy"], default=None)


def evaluate_best(args, run, finished, dataset):
    """Take a run to the test split of `dataset`, None for its own."""
    from transfer import data, report, runs

    if run is None:
        dataset = dataset or data.load_dataset(None)
        print_notice(dataset.notice)
        report.print_runs(finished, dataset)
        print(
            f"There is no finished run on {dataset.root} in {args.runs}/ yet, so nothing is tested."
        )
        print("Next: python finetune.py --head iii --unfreeze stepped")
        return
    dataset = dataset or runs.dataset_of(run, args.seed)
    if run.config["labels"] != dataset.labels:
        raise BadInput(
            f"{run.folder} knows other classes than those of {dataset.root}; name its --data."
        )
    if args.image_size not in (None, run.image_size):
        raise BadInput(f"{run.folder} takes images of {run.image_size} pixels; drop --image-size.")
    args.run, args.image_size = run.folder, run.image_size
    flags.resolve_arguments(args, dataset)
    args.out = out = Path(args.out or report_folder(dataset, run))
    print_configuration(args, dataset)
    report.print_runs(finished, dataset)
    figures = evaluate_run(args, dataset, run, out)
    print()
    report.print_report(figures, dataset)
    print()
    print_notice(dataset.notice)
    print(f"Results: {out}/ (metrics.json, predictions.csv, confusion_matrix.png)")
    explain = (
        "" if args.explain else f", and python test_model.py --run {run.folder} --explain shows why"
    )
    print(f"Next: open the confusion matrix: which classes are taken for which{explain}")


def report_folder(dataset, run):
    """Where the test of a run on this dataset is recorded where nothing else is asked for."""
    same = run.fingerprint == dataset.fingerprint
    return run.folder / ("test" if same else f"test-{dataset.fingerprint[:8]}")


def evaluate_run(args, dataset, run, out):
    """Test a run and write its report into the folder `out`; returns the figures."""
    from transfer import explain, features, predict, report
    from transfer.files import locked

    files = dataset.splits["test"].files.tolist()
    print(f"Testing {run.folder} on {len(files)} images of the test split", flush=True)
    classify, network = predict.load_classifier(run) if run.is_network else (None, None)
    batch_size = args.batch_size or dataset.defaults["batch_size"]
    settings = features.ExtractionOptions(batch_size, args.cache, args.skip_unreadable)
    predictions = predict.predict_split(dataset, run, "test", settings, classify)
    threshold = predict.acceptance_threshold(args.accept, run, settings, classify)
    tested = report.evaluate(dataset, predictions, threshold)
    with locked(out):
        out.mkdir(exist_ok=True)
        report.write_report(
            out, run, dataset, tested, [file for file in files if file not in predictions]
        )
        if args.explain:
            explain.explain_test(out, run, dataset, tested, network)
    return tested.figures


def compare(args, dataset):
    """Say whether the two runs of --compare differ on the test split; those not tested yet are first."""
    from transfer import report, runs
    from transfer.files import write_csv

    first, second = map(runs.read_run, args.compare)
    if first.fingerprint != second.fingerprint:
        raise BadInput(f"{first.folder} and {second.folder} are of two datasets; name two of one.")
    dataset = dataset or runs.dataset_of(first, args.seed)
    print_notice(dataset.notice)
    answers = []
    for run in (first, second):
        tested = report_folder(dataset, run)
        if not (tested / "predictions.csv").exists():
            evaluate_run(args, dataset, run, tested)
        answers.append(report.read_answers(tested / "predictions.csv"))
    accuracies, rows = report.compare_answers(*answers, dataset.labels)
    out = (
        Path(args.out or report_folder(dataset, first)) / f"compared-with-{second.folder.name}.csv"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_csv(out, [{**row, "dataset": dataset.name} for row in rows])
    print()
    report.print_comparison([str(first.folder), str(second.folder)], accuracies, rows)
    print(f"\nResults: {out}")
    print(f"Next: python test_model.py --run {first.folder} --explain")


def predict(args, run):
    """Say what the pictures of --predict are; with --explain draw why."""
    from transfer import explain, features, predict, runs
    from transfer.files import locked

    if run is None:
        raise BadInput(
            f"There is no finished run in {args.runs}/; train one, or name it with --run."
        )
    flags.refuse_inside(args.out, args.predict)
    notice, files = run.config["dataset"]["notice"], predict.list_pictures(args.predict)
    print_notice(notice)
    on = f"{run.config['dataset']['name']} (val accuracy {percent(run.metrics['val_accuracy'])})"
    print(f"{run.folder}, trained on {on}, classifies {len(files)} pictures:", flush=True)
    places = [Path(args.out)] if args.out else runs.numbered_names(run.folder / "predicted")
    out = next((place for place in places if not (place / "predictions.jsonl").exists()), None)
    if out is None:
        raise BadInput(f"{args.out} holds predictions already; name a new folder with --out.")
    classify, network = predict.load_classifier(run)
    batch_size = args.batch_size or run.config["arguments"]["batch_size"]
    settings = features.ExtractionOptions(batch_size, args.cache, args.skip_unreadable)
    threshold = predict.acceptance_threshold(args.accept, run, settings, classify)
    with locked(out):
        out.mkdir(exist_ok=True)
        kept = out if args.cache == "none" else args.cache
        read, unread = predict.predict_files(files, classify, run, batch_size, kept)
        answers = predict.answers_of(read, threshold)
        predict.write_predictions(out, run, read, unread, answers)
        if args.explain and run.is_network and read:
            explain.explain_pictures(out / "explained", network, run.image_size, read, notice)
    print()
    predict.print_predictions(read, unread, answers)
    print()
    if args.explain and not run.is_network:
        print(
            "Grad-CAM is for networks; for this classifier there is the importance of its layers."
        )
        explain.explain_layers(out, run)
    print_notice(notice)
    if not read:
        raise BadInput(f"None of the {len(files)} pictures could be read (see above).")
    print(f"Results: {out}/ (predictions.csv, predictions.jsonl)")
    if not args.explain:
        print(
            f"Next: python test_model.py --run {run.folder} --predict {args.predict[0]} --explain"
        )


def main(argv=None):
    args = parse_args(argv)
    import common  # noqa: F401, Keras first, without its start-up lines
    from transfer import data, runs

    dataset = data.load_dataset(args.data, args.seed) if args.data else None
    if args.compare:
        compare(args, dataset)
        return
    finished = runs.finished_runs(args.runs)
    run = choose_run(args.run, finished, dataset)
    if args.predict:
        predict(args, run)
    else:
        evaluate_best(args, run, finished, dataset)


if __name__ == "__main__":
    run_script(main)
