"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run
    python test_model.py --compare RUN RUN    whether two runs differ (exact McNemar test)
    python test_model.py --explain        and why: its most confident mistakes, what it looks at
    python test_model.py --predict IMAGE_OR_FOLDER ...    classify any pictures

Writes to RUN/test/: metrics.json (per class, per museum, averages), predictions.csv (one row a file) and
confusion_matrix.png; with --explain gallery.png and explained/*.png or layer_importance.png. --predict
writes predictions.csv and predictions.jsonl to RUN/predicted/. Not a pytest file.
"""

from pathlib import Path

from transfer.flags import add_shared_arguments, resolve_arguments, script_parser
from transfer.screen import BadInput, percent, print_configuration, print_notice, progress, run_script


def parse_args(argv=None):
    parser = script_parser(__doc__)
    add = parser.add_argument_group("what is tested").add_argument
    add("--run", metavar="RUN", help="default: the best validation accuracy of all runs")
    add("--runs", default="runs", metavar="DIR", help="default: %(default)s")
    text = "leave the test split alone and classify these pictures, or all in these folders"
    add("--predict", nargs="+", metavar="PATH", help=text)
    add("--compare", nargs=2, metavar="RUN", help="say whether two runs differ, and on which classes")
    text = "draw why: the most confident mistakes, Grad-CAM (networks), the layers' importance (forests)"
    add("--explain", action="store_true", help=text)
    add_shared_arguments(parser)
    return parser.parse_args(argv)


def choose_run(named, runs, dataset):
    """The run that --run names, or the one of the best val_accuracy on this dataset (on any where None is
    given); None where there is no run."""
    from transfer.runs import read_run

    if named:
        return read_run(named)
    if dataset:
        runs = [run for run in runs if run.fingerprint == dataset.fingerprint]
    return max(runs, key=lambda run: run.metrics["val_accuracy"], default=None)


def predict_pipeline(dataset, run, settings):
    """{file: probabilities (n_classes,)} of a pipeline for the test split, its features extracted first."""
    from transfer import classifiers, features, store

    stored = run.config["features"]
    folder, pipeline = Path(stored["folder"]), classifiers.load_pipeline(run.folder / "pipeline.skops")
    features.extract_features(features.source_of(stored), dataset, ("test",), folder, settings)
    if store.read_json(folder / "features.json")["weights_sha256"] != stored["weights_sha256"]:
        raise BadInput(f"{run.folder} was fitted on other features than those in {folder}; fit it again.")
    x, _, files = features.load_features(folder, dataset, "test", run.metrics["layers"])
    return dict(zip(files.tolist(), classifiers.pipeline_probabilities(pipeline, x, len(dataset.labels))))


def test(args, runs):
    """Take a run to the test split."""
    from transfer import data, report

    dataset = data.load_dataset(args.data, args.seed)
    run = choose_run(args.run, runs, dataset)
    if run is None:
        print_notice(dataset.notice)
        report.print_runs(runs, dataset)
        print(f"There is no finished run on {dataset.root} in {args.runs}/ yet, so nothing is tested.")
        print("Next: python finetune.py --head iii --unfreeze stepped")
        return
    if run.config["labels"] != dataset.labels:
        raise BadInput(f"{run.folder} knows other classes than those of {dataset.root}; name its --data.")
    if args.image_size not in (None, run.image_size):
        raise BadInput(f"{run.folder} takes images of {run.image_size} pixels; drop --image-size.")
    out = Path(args.out or test_folder(dataset, run))
    args.run, args.image_size, args.out = run.folder, run.image_size, out
    resolve_arguments(args, dataset)
    print_configuration(args, dataset)
    report.print_runs(runs, dataset)
    figures = test_run(args, dataset, run, out)
    print()
    report.print_report(figures, dataset)
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
    from transfer import explain, features, images, predict, report, store

    batch_size, files = args.batch_size or dataset.defaults["batch_size"], dataset.splits["test"].files
    print(f"Testing {run.folder} on {len(files)} images of the test split", flush=True)
    network = None
    if run.is_network:
        classify, network = predict.load_classifier(run)
        readable = images.load_images(dataset, ("test",), run.image_size, args.cache, args.skip_unreadable)
        split, predictions = readable.splits["test"], {}
        for start in progress(range(0, len(split.files), batch_size), "testing"):
            rows = slice(start, start + batch_size)
            predictions |= zip(split.files[rows].tolist(), classify(split.images[rows]))
    else:
        settings = features.Extraction(batch_size, args.cache, args.skip_unreadable)
        predictions = predict_pipeline(dataset, run, settings)
    tested = report.evaluate(dataset, predictions)
    with store.locked(out):
        out.mkdir(exist_ok=True)
        skipped = [file for file in files.tolist() if file not in predictions]
        report.write_report(out, run, dataset, tested, skipped)
        if args.explain:
            explain.explain_test(out, run, dataset, tested, network)
    return tested.figures


def compare(args):
    """Say whether the two runs of --compare differ on the test split; those not tested yet are first."""
    from transfer import data, report, runs, store

    first, second = map(runs.read_run, args.compare)
    if first.fingerprint != second.fingerprint:
        raise BadInput(f"{first.folder} and {second.folder} are of two datasets; name two of one.")
    dataset = data.load_dataset(args.data or first.config["dataset"]["folder"], args.seed)
    print_notice(dataset.notice)
    answers = []
    for run in (first, second):
        tested = test_folder(dataset, run)
        if not (tested / "predictions.csv").exists():
            test_run(args, dataset, run, tested)
        answers.append(report.read_answers(tested / "predictions.csv"))
    accuracies, rows = report.compare_answers(*answers, dataset.labels)
    out = Path(args.out or test_folder(dataset, first)) / f"compared-with-{second.folder.name}.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write_csv(out, [{**row, "dataset": dataset.name} for row in rows])
    print()
    report.print_comparison([str(first.folder), str(second.folder)], accuracies, rows)
    print(f"\nResults: {out}")
    print(f"Next: python test_model.py --run {first.folder} --explain")


def predict(args, finished):
    """Say what the pictures of --predict are; with --explain draw why."""
    from transfer import data, explain, predict, runs, store

    run = choose_run(args.run, finished, data.load_dataset(args.data, args.seed) if args.data else None)
    if run is None:
        raise BadInput(f"There is no finished run in {args.runs}/; train one, or name it with --run.")
    notice, files = run.config["dataset"]["notice"], predict.list_pictures(args.predict)
    print_notice(notice)
    on = f"{run.config['dataset']['name']} (val accuracy {percent(run.metrics['val_accuracy'])})"
    print(f"{run.folder}, trained on {on}, classifies {len(files)} pictures:")
    out = Path(args.out or next(p for p in runs.numbered(run.folder / "predicted") if not p.exists()))
    if (out / "predictions.jsonl").exists():
        raise BadInput(f"{out} holds predictions already; name a new folder with --out.")
    classify, network = predict.load_classifier(run)
    explain_each, rankings, unreadable = args.explain and run.is_network, {}, {}
    batch_size = args.batch_size or run.config["arguments"]["batch_size"]
    with store.locked(out):
        out.mkdir(exist_ok=True)
        batches = predict.predict_files(files, classify, run.image_size, batch_size)
        for good, images, probabilities, bad in batches:
            found = dict(zip(good, (predict.ranking(row, run.config["labels"]) for row in probabilities)))
            if explain_each:
                place, first = out / "explained", len(rankings) + 1
                explain.explain_pictures(place, network, images, found, notice, first)
            rankings.update(found)
            unreadable.update(bad)
        predict.write_predictions(out, run, rankings, unreadable)
    print()
    predict.print_predictions(rankings, unreadable)
    print()
    if args.explain and not run.is_network:
        print("Grad-CAM is for networks; for this classifier there is the importance of its layers.")
        explain.explain_layers(out, run)
    print_notice(notice)
    if not rankings:
        raise BadInput(f"None of the {len(files)} pictures could be read (see above).")
    explained = ", explained/*.png" * explain_each
    print(f"Results: {out}/ (predictions.csv, predictions.jsonl{explained})")
    if not args.explain:
        print(f"Next: python test_model.py --run {run.folder} --predict {args.predict[0]} --explain")


def main(argv=None):
    args = parse_args(argv)
    import common  # noqa: F401, Keras first, without its start-up lines
    from transfer import runs, store

    if args.compare:
        compare(args)
    elif args.predict:
        predict(args, runs.finished_runs(args.runs))
    else:
        if args.run and args.data is None and (Path(args.run) / "config.json").exists():
            args.data = store.read_json(Path(args.run) / "config.json")["dataset"]["folder"]
        test(args, runs.finished_runs(args.runs))


if __name__ == "__main__":
    run_script(main)
