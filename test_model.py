"""Show all runs beside the study's rows, and take the best one to the test split (STUDY, "Final
table").

    python test_model.py                  the run of the best validation accuracy
    python test_model.py --run runs/NAME  this run
    python test_model.py --compare RUN RUN    whether two runs differ (exact McNemar test)
    python test_model.py --explain        and why: its most confident mistakes, what it looks at
    python test_model.py --predict IMAGE_OR_FOLDER ...    classify any pictures

Writes to RUN/test/, with --predict to RUN/predicted/.
"""

from pathlib import Path

from transfer import flags
from transfer.console import BadInput, print_configuration, print_next, print_notice, run_script


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    group = parser.add_argument_group("what is tested")
    group.add_argument(
        "--run",
        metavar="RUN",
        help="folder of the run to test (default: that of the best validation accuracy)",
    )
    group.add_argument(
        "--runs", default="runs", metavar="DIR", help="folder of all runs (default: %(default)s)"
    )
    instead = group.add_mutually_exclusive_group()
    instead.add_argument(
        "--predict",
        nargs="+",
        metavar="PATH",
        help="leave the test split alone and classify these pictures, or all in these folders",
    )
    instead.add_argument(
        "--compare",
        nargs=2,
        metavar="RUN",
        help="say whether two runs differ, and on which classes",
    )
    group.add_argument(
        "--accept",
        type=flags.share,
        metavar="P",
        help="share of the answers that must be right, e.g. 0.95: those from a confidence on that "
        "promises it with 90%% certainty, by the run's folds or validation split, for new pictures "
        "of the same kinds in about the same shares; the others become 'unsure'",
    )
    group.add_argument(
        "--explain",
        action="store_true",
        help="draw why: the most confident mistakes, Grad-CAM (networks), the layers' importance "
        "(forests and linear classifiers)",
    )
    flags.add_shared_arguments(parser, without=("image-size",))
    return parser.parse_args(argv)


def evaluate(args, run, finished, dataset):
    """Show all finished runs, and take `run` to the test split of `dataset`, None for its own."""
    from transfer import report
    from transfer.runs import dataset_of

    dataset = dataset or dataset_of(run, args.seed, args.cache)
    args.run = run.folder
    args.image_size = run.image_size
    flags.resolve_arguments(args, dataset)
    if not args.out or report.has_folds_of(run, dataset):
        args.out = report.report_folder(dataset, run)
    print_configuration(args, dataset)
    report.print_runs(finished, dataset)
    figures = report.evaluate_run(args, dataset, run, Path(args.out))
    print()
    report.print_report(figures, dataset)
    print_notice(dataset.notice)
    print(f"\nResults: {args.out}/ (metrics.json, predictions.csv, confusion_matrix.png)")
    if not args.explain:
        print_next(
            "test_model.py",
            run=run.folder,
            data=args.data,
            skip_unreadable=args.skip_unreadable,
            explain=True,
        )


def main(argv=None):
    args = parse_args(argv)
    from transfer.data import load_dataset
    from transfer.predict import predict_pictures
    from transfer.report import compare_runs, is_of, print_runs
    from transfer.runs import finished_runs, read_run

    dataset = load_dataset(args.data, args.seed, args.cache) if args.data else None
    if args.compare:
        compare_runs(args, dataset)
        return
    finished = finished_runs(args.runs)

    # the run that is named, else that of the best validation accuracy on this dataset
    if args.run:
        run = read_run(args.run)
    else:
        here = [run for run in finished if not dataset or is_of(run, dataset)]
        run = max(here, key=lambda run: run.metrics["val_accuracy"], default=None)

    if run and args.predict:
        predict_pictures(args, run, dataset)
    elif run:
        evaluate(args, run, finished, dataset)
    elif args.predict:
        raise BadInput(
            f"There is no finished run on {args.data or 'any pictures'} in {args.runs}/; "
            "train one, or name it with --run."
        )
    else:
        dataset = dataset or load_dataset(None)
        print_runs(finished, dataset)
        print(f"There is no finished run on {dataset.root} in {args.runs}/ yet: nothing is tested.")
        print_next("finetune.py", head="iii", unfreeze="stepped", data=args.data)


if __name__ == "__main__":
    run_script(main)
