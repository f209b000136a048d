"""Rerun the whole study: every row of its tables in order, ours beside it, and then what beats it.

    python rerun_study.py                          on MAMe (the demo dataset where that is missing)
    python rerun_study.py --data DIR --seeds 0 1 2      on any pictures, with standard errors

Each command is printed as it would be typed; its run lies in runs/<dataset>-study/seed-<N>/. A
strategy begins with the stages of shorter ones, so four trainings give all rows of fine-tuning. The
same command again resumes, also with more seeds. Writes rows.csv.
"""

import multiprocessing
import shlex
import sys
from importlib import import_module
from itertools import product
from pathlib import Path

from transfer import flags
from transfer.console import (
    BadInput,
    flags_of,
    print_configuration,
    print_next,
    print_notice,
    print_table,
    run_script,
)
from transfer.study import CLAIMS, TEST_ACCURACY, VAL_ACCURACY

# What is run: its script and flags. {folder} is that of the seed.
COMMANDS = {
    "head-i": "finetune.py --head i",
    "head-ii": "finetune.py --head ii",
    "stepped": "finetune.py --head iii --unfreeze stepped --final-augment",
    "all-augment": "finetune.py --head iii --unfreeze all --augment",
    "forests": "random_forest.py --grid",
    "forest-on-all-augment": "random_forest.py --leaf 2 --trees 50 --weights {folder}/all-augment",
    "forest-on-stepped": "random_forest.py --leaf 2 --trees 50 --weights {folder}/stepped",
}
OURS = {  # what is not the study's
    "linear": "random_forest.py --classifier linear",
    "strong": "finetune.py --recipe strong",
}
ONE_ROW = {  # of several that a run could stand for, or that the study does not have
    "forest-on-all-augment": "forest on: all unfrozen, augmentation",
    "forest-on-stepped": "forest on: second fine-tuned model",
    "linear": "ours: linear classifier",
    "strong": "ours: the strong recipe",
}
BEST_OF_STUDY = "the best of these on the test split"
BEST_OF_OURS = "ours: the better one on the test split"
ROWS = {  # the study's figure in percent
    **VAL_ACCURACY,
    BEST_OF_STUDY: 100 * TEST_ACCURACY,
    ONE_ROW["linear"]: None,
    ONE_ROW["strong"]: None,
    BEST_OF_OURS: None,
}
CLAIMED = (*CLAIMS, ("ours is ahead on the test split", BEST_OF_OURS, BEST_OF_STUDY))
SIGNIFICANT = 0.05  # p below which a difference is one


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    parser.add_argument(
        "--seeds",
        type=flags.natural,
        nargs="+",
        default=[0],
        metavar="N",
        help="random seeds, a rerun with each (default: 0)",
    )
    flags.add_training_arguments(parser, without=("processes",))
    flags.add_shared_arguments(parser, without=("seed",))
    return parser.parse_args(argv)


def flags_for(script, settings, given=()):
    """Those of the settings that a script has flags for, as flags. Left out: those without a value,
    and those in `given`."""
    known = vars(import_module(Path(script).stem).parse_args([]))
    return flags_of(
        {
            name: value
            for name, value in settings.items()
            if name in known and f"--{name.replace('_', '-')}" not in given
        }
    )


def call(script, given):
    """Run a script with the flags `given` in a process of its own; BadInput where it fails."""
    # Keras and all else takes some seconds to import; on Linux a process is a copy that has it
    import_module("transfer.report")
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

    # a process has the command line of the one that starts it
    sys.argv = [script, *given]
    main_of_script = import_module(Path(script).stem).main
    process = context.Process(target=run_script, args=(main_of_script,))
    process.start()
    process.join()
    if process.exitcode:
        raise BadInput(
            f"python {script} ended with status {process.exitcode}; fix that, then rerun this."
        )


def run_commands(settings, seeds, out):
    """Call every command for every seed, but for those whose run is finished."""
    planned = list(product(seeds, {**COMMANDS, **OURS}.items()))
    for number, (seed, (name, command)) in enumerate(planned, 1):
        folder = out / f"seed-{seed}"
        run = folder / name
        script, *given = [word.format(folder=folder) for word in command.split()]
        given += flags_for(script, {**settings, "seed": seed, "out": run}, given)

        print(f"[{number} of {len(planned)}] python {script} {shlex.join(given)}", flush=True)
        if (run / "metrics.json").exists():
            print(f"  finished before: {run}/")
        else:
            call(script, given)


def accuracy_on_test(runs, settings):
    """Accuracy on the test split of the best of these Runs, tested first where it is not yet."""
    from transfer.files import read_json

    best = max(runs, key=lambda run: run.metrics["val_accuracy"]).folder
    out = best / "test"
    if not (out / "metrics.json").exists():
        asked = {**settings, "run": best, "runs": best.parent, "out": out}
        call("test_model.py", flags_for("test_model.py", asked))
    return read_json(out / "metrics.json")["accuracy"]


def collect(out, seeds, settings):
    """The figures of a finished rerun, {row of ROWS: [accuracy with each of the seeds]}; takes the
    best runs of each seed to the test."""
    from transfer.report import study_rows
    from transfer.runs import read_run

    figures = {row: [] for row in ROWS}
    for seed in seeds:
        runs = {name: read_run(out / f"seed-{seed}" / name) for name in (*COMMANDS, *OURS)}
        found = {}
        for run in runs.values():
            found.update(study_rows(run))
        for name, row in ONE_ROW.items():
            found[row] = runs[name].metrics["val_accuracy"]
        for row, names in ((BEST_OF_STUDY, COMMANDS), (BEST_OF_OURS, OURS)):
            found[row] = accuracy_on_test([runs[name] for name in names], settings)
        for row in ROWS:
            figures[row].append(found[row])
    return figures


def print_results(figures, name):
    """Every row of a rerun on the dataset `name` beside the study's; then what the study concludes
    from its rows, and whether it holds for these figures."""
    from transfer.report import print_study_rows
    from transfer.stats import in_percent, paired_p

    print("Accuracy in percent, of validation where no test is named, +- standard error over seeds")
    print_study_rows(figures, name, ROWS, in_percent)

    print(
        "\nDoes what the study says hold here? Differences in points, paired by seed; yes or no:\n"
        f"p < {SIGNIFICANT} in a paired t-test, which ignores that the split itself is small"
    )
    rows = []
    for claim, ahead, behind in CLAIMED:
        gains = [better - worse for better, worse in zip(figures[ahead], figures[behind])]
        p = paired_p(figures[ahead], figures[behind])
        holds = "not significant"
        if p < SIGNIFICANT:
            holds = "yes" if sum(gains) > 0 else "no"
        study = f"{ROWS[ahead] - ROWS[behind]:+.2f}" if ROWS[ahead] else "-"
        rows.append((claim, study, in_percent(gains, "+"), holds))
    print_table(("claim", "study, MAMe", "ours", "holds here"), rows)


def main(argv=None):
    args = parse_args(argv)
    from transfer import features
    from transfer.data import load_dataset
    from transfer.files import write_csv
    from transfer.runs import describe_run, start_run
    from transfer.weights import is_published_vgg16

    # settings as typed: each script fills in the rest, the strong recipe its own rates
    settings = vars(args).copy()
    seeds = settings.pop("seeds")
    dataset = load_dataset(args.data, seeds[0], args.cache)
    flags.resolve_arguments(args, dataset)

    # bad input ends here, before anything runs
    if not is_published_vgg16(args.weights):
        raise BadInput(
            "--weights: the study's forests are on VGG16 itself; name imagenet, none or an .h5."
        )
    spec = features.FeatureSpec(args.weights, "all", args.image_size, 0, args.precision)
    features.has_dense(spec)  # BadInput where they do not fit the image size
    print_configuration(args, dataset)

    # recorded like a run that is never finished: more seeds may follow
    del args.seeds
    with start_run(describe_run(args, dataset), "study", args.out) as out:
        run_commands(settings, seeds, out)
        figures = collect(out, seeds, settings)
        rows = [
            {"row": row, "study": study, "dataset": dataset.name, **dict(zip(seeds, figures[row]))}
            for row, study in ROWS.items()
        ]
        write_csv(out / "rows.csv", rows)

    print()
    print_notice(dataset.notice)
    print_results(figures, dataset.name)
    print(f"\nResults: {out}/ (rows.csv, and a folder of runs for each seed)")
    print_next("test_model.py", runs=out / f"seed-{seeds[0]}")


if __name__ == "__main__":
    run_script(main)
