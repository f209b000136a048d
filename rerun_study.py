"""Rerun the whole study: every row of its tables in order, ours beside it, and then what beats it.

    python rerun_study.py                          on MAMe (the demo dataset where that is absent)
    python rerun_study.py --data DIR --seeds 0 1 2      on any pictures, with standard errors

Each command that it runs is printed as it would be typed, and its run lies in <out>/seed-<N>/. A strategy
begins with the steps of shorter ones, so four trainings give all rows of fine-tuning. After them come the
linear classifier and the strong recipe of docs/better.md. Interrupted, or with more seeds, the same command
goes on with what is missing. Writes rows.csv to <out>.
"""

import subprocess
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from common import add_shared_arguments, natural, resolve_arguments, script_parser
from transfer.dataset import load_dataset
from transfer.files import LOCK, locked, read_json, write_csv, write_json
from transfer.recipes import add_training_arguments
from transfer.report import study_rows
from transfer.runs import read_run
from transfer.screen import BadInput, print_configuration, print_notice, print_table, run_script
from transfer.study import CLAIMS, TEST_FIGURES, VAL_ACCURACY

FOREST = ("random_forest.py", "--leaf", "2", "--trees", "50")
# Run's name: its script and flags. A forest's "--model" is the run of that name; the others stand on the
# original VGG16.
COMMANDS = {
    "head-i": ("finetune.py", "--head", "i"),
    "head-ii": ("finetune.py", "--head", "ii"),
    "stepped": ("finetune.py", "--head", "iii", "--unfreeze", "stepped", "--final-augment"),
    "all-augment": ("finetune.py", "--head", "iii", "--unfreeze", "all", "--augment"),
    "forests": ("random_forest.py", "--grid"),
    "forest-on-all-augment": (*FOREST, "--model", "all-augment"),
    "forest-on-stepped": (*FOREST, "--model", "stepped"),
}
# What is not the study's: the run's name, and its script and flags.
OURS = {
    "linear": ("random_forest.py", "--classifier", "linear", "--discretize"),
    "strong": ("finetune.py", "--recipe", "strong"),
}
TITLES = {"linear": "ours: linear classifier, discretised", "strong": "ours: the strong recipe"}
FINE_TUNED = {  # the row of the forest on each fine-tuned network
    "forest-on-all-augment": "forest on: all unfrozen, augmentation",
    "forest-on-stepped": "forest on: second fine-tuned model",
}
OF_FORESTS = ("image_size", "batch_size", "cache", "skip_unreadable", "precision", "devices")


def parse_args(argv=None):
    parser = script_parser(__doc__)
    parser.add_argument(
        "--seeds", type=natural, nargs="+", default=[0], metavar="N", help="of the runs (default: 0)"
    )
    add_training_arguments(parser)
    add_shared_arguments(parser)
    parser.set_defaults(seed=None)
    args = parser.parse_args(argv)
    if args.seed is not None or args.workers:
        raise BadInput("rerun_study.py takes --seeds instead of --seed, and no --workers.")
    del args.seed
    return args


def given_flags(settings):
    """The settings {name: value} as flags; those without a value are left out."""
    flags = []
    for key, value in settings.items():
        if value is not None and value is not False:
            flags += [f"--{key.replace('_', '-')}"] + [str(value)] * (value is not True)
    return flags


def plan(args, out):
    """The commands of the rerun in their order: [(the run's folder, script, flags)]."""
    settings = {key: value for key, value in vars(args).items() if key not in ("seeds", "out")}
    of_forests = {"data": args.data} | {key: settings[key] for key in OF_FORESTS}
    commands = []
    for seed in args.seeds:
        folder = out / f"seed-{seed}"
        for name, (script, *flags) in (COMMANDS | OURS).items():
            shared = settings if script == "finetune.py" else of_forests
            if "--model" in flags:
                flags[-1] = folder / flags[-1]
            elif script == "random_forest.py" and args.weights:
                flags += ["--model", args.weights]
            flags = [*flags, *given_flags(shared), "--seed", seed, "--out", folder / name]
            commands.append((folder / name, script, [str(flag) for flag in flags]))
    return commands


def call(script, flags):
    """Run a script in a process of its own; BadInput where it fails."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *flags])
    if done.returncode:
        raise BadInput(
            f"python {script} ended with status {done.returncode}, see above; mend that, and the same "
            "command goes on."
        )


def rerun(commands):
    """Run the commands whose runs are not finished, each in a process of its own."""
    for number, (run, script, flags) in enumerate(commands, 1):
        print(f"[{number} of {len(commands)}] python {script} {' '.join(flags)}", flush=True)
        if (run / "metrics.json").exists():
            print(f"  finished before: {run}/", flush=True)
            continue
        call(script, flags)


def test_best(runs, args):
    """Take the best of the `runs` (folders) to the test split, once; returns its accuracy there."""
    best = max(map(read_run, runs), key=lambda run: run.metrics["val_accuracy"]).folder
    report = best / "test" / "metrics.json"
    if not report.exists():
        settings = {"run": best, "runs": best.parent, "data": args.data, "cache": args.cache}
        settings |= {"skip_unreadable": args.skip_unreadable}
        call("test_model.py", given_flags(settings))
    return read_json(report)["accuracy"]


def figures_of(runs):
    """{row of the study, or title of OURS: our val_accuracy} of finished runs {name: its folder}."""
    found = {title: read_run(runs[name]).metrics["val_accuracy"] for name, title in TITLES.items()}
    for name, run in runs.items():
        only = FINE_TUNED.get(name)  # of the rows that the study gives for fine-tuned networks
        rows = study_rows(read_run(run))
        found |= {row: ours for row, _, ours in rows if only in (None, row)}
    return found


def mean_and_error(values):
    """The mean of figures, one a seed, and its standard error; that is None where there is one alone."""
    return mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else None


def shown(mean, error, sign=""):
    """In percent, with its standard error where there is one."""
    return f"{100 * mean:{sign}.2f}" + (f" +- {100 * error:.2f}" if error is not None else "")


def print_rows(figures, tested, dataset):
    """Every row of the study beside ours, then what is not the study's.

    figures: {row: [val_accuracy of each seed]}. tested: {"study" or "ours": [accuracy of the best of these
    rows on the test split, of each seed]}.
    """
    print_notice(dataset.notice)
    print("The study's rows: accuracy on the validation split in percent, +- standard error over the seeds")
    rows = [
        (row, f"{study:.2f}", shown(*mean_and_error(figures[row]))) for row, study in VAL_ACCURACY.items()
    ]
    study = f"{100 * TEST_FIGURES['accuracy']:.0f}"
    rows.append(("the best of these on the test split", study, shown(*mean_and_error(tested["study"]))))
    rows += [(row, "-", shown(*mean_and_error(figures[row]))) for row in TITLES.values()]
    rows.append(("ours: the better one on the test split", "-", shown(*mean_and_error(tested["ours"]))))
    gain, error = mean_and_error([a - b for a, b in zip(tested["ours"], tested["study"])])
    rows.append(("ours: ahead of the study's best there, points", "-", shown(gain, error, "+")))
    print_table(("row", "study, MAMe", f"ours, {dataset.name}"), rows)
    print("\nDoes what the study says hold here? Differences, paired by seed, in points")
    rows = []
    for claim, ahead, behind in CLAIMS:
        difference, error = mean_and_error([a - b for a, b in zip(figures[ahead], figures[behind])])
        clear = error is not None and abs(difference) > 2 * error
        holds = ("yes" if difference > 0 else "no") if clear else "not clear"
        study = VAL_ACCURACY[ahead] - VAL_ACCURACY[behind]
        rows.append((claim, f"{study:+.2f}", shown(difference, error, "+"), holds))
    print_table(("claim", "study, MAMe", f"ours, {dataset.name}", "holds here"), rows)
    print(
        "(clear is what is more than two standard errors from 0; how few images a split has adds to those)"
    )


def main(argv=None):
    args = parse_args(argv)
    dataset = load_dataset(args.data, args.seeds[0])
    resolve_arguments(args, dataset)
    out = Path(args.out or Path("runs") / f"study-{dataset.name}")
    print_configuration(args, dataset)
    with locked(out / LOCK):
        same = {key: value for key, value in vars(args).items() if key not in ("seeds", "out")}
        same = {"arguments": same, "fingerprint": dataset.fingerprint}
        settings = out / "study.json"
        if settings.exists() and read_json(settings) != same:
            raise BadInput(f"{out} holds a rerun with other settings; name another folder with --out.")
        write_json(settings, same)
        commands = plan(args, out)
        rerun(commands)
        figures, tested = {}, {"study": [], "ours": []}
        for seed in args.seeds:
            folder = out / f"seed-{seed}"
            tested["study"].append(test_best([folder / name for name in COMMANDS], args))
            tested["ours"].append(test_best([folder / name for name in OURS], args))
            for row, ours in figures_of({name: folder / name for name in COMMANDS | OURS}).items():
                figures.setdefault(row, []).append(ours)
        rows = [
            {"row": row, "study": VAL_ACCURACY.get(row)}
            | dict(zip(args.seeds, ours))
            | {"dataset": dataset.name}
            for row, ours in figures.items()
        ]
        write_csv(out / "rows.csv", rows)
    print()
    print_rows(figures, tested, dataset)
    print(f"\nResults: {out}/ (rows.csv, and a folder of runs for each seed)")
    print(f"Next: python test_model.py --runs {out}/seed-{args.seeds[0]}")


if __name__ == "__main__":
    run_script(main)
