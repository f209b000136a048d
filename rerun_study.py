"""Rerun the whole study: every row of its tables in order, ours beside it, and then what beats it.

    python rerun_study.py                          on MAMe (the demo dataset where that is missing)
    python rerun_study.py --data DIR --seeds 0 1 2      on any pictures, with standard errors

Each command is printed as it would be typed, its run lies in <out>/seed-<N>/. A strategy begins with the
stages of shorter ones, so four trainings give all rows of fine-tuning. The same command again resumes, also
with more seeds. Writes rows.csv to <out>.
"""

import subprocess
import sys
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from transfer import flags
from transfer.console import BadInput, print_configuration, print_notice, print_table, run_script
from transfer.study import CLAIMS, TEST_FIGURES, VAL_ACCURACY

FOREST = ("random_forest.py", "--leaf", "2", "--trees", "50")
# The run's name: its script and flags; "--weights" names the run of a network that was fine-tuned before.
COMMANDS = {
    "head-i": ("finetune.py", "--head", "i"),
    "head-ii": ("finetune.py", "--head", "ii"),
    "stepped": ("finetune.py", "--head", "iii", "--unfreeze", "stepped", "--final-augment"),
    "all-augment": ("finetune.py", "--head", "iii", "--unfreeze", "all", "--augment"),
    "forests": ("random_forest.py", "--grid"),
    "forest-on-all-augment": (*FOREST, "--weights", "all-augment"),
    "forest-on-stepped": (*FOREST, "--weights", "stepped"),
}
OURS = {  # what is not the study's
    "linear": ("random_forest.py", "--classifier", "linear"),
    "strong": ("finetune.py", "--recipe", "strong"),
}
TITLES = {"linear": "ours: linear classifier", "strong": "ours: the strong recipe"}
FINE_TUNED = {  # the row of the forest on each fine-tuned network
    "forest-on-all-augment": "forest on: all unfrozen, augmentation",
    "forest-on-stepped": "forest on: second fine-tuned model",
}
OF_FORESTS = (
    "data",
    "weights",
    "image_size",
    "batch_size",
    "cache",
    "skip_unreadable",
    "precision",
)


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    text = "of the runs (default: 0)"
    parser.add_argument(
        "--seeds", type=flags.natural, nargs="+", default=[0], metavar="N", help=text
    )
    flags.add_training_arguments(parser)
    flags.add_shared_arguments(parser)
    parser.set_defaults(seed=None)
    args = parser.parse_args(argv)
    if args.seed is not None or args.processes:
        raise BadInput("rerun_study.py takes --seeds instead of --seed, and no --processes.")
    del args.seed
    return args


def given_flags(settings):
    """The settings {name: value} as flags; those without a value are left out."""
    given = []
    for key, value in settings.items():
        if value is not None and value is not False:
            given += [f"--{key.replace('_', '-')}"] + [str(value)] * (value is not True)
    return given


def plan(settings, seeds, out):
    """The commands of the rerun in their order: [(the run's folder, script, flags)]."""
    of_forests = {key: settings[key] for key in OF_FORESTS}
    commands = []
    for folder, seed in ((out / f"seed-{seed}", seed) for seed in seeds):
        for name, (script, *given) in (COMMANDS | OURS).items():
            shared = dict(settings if script == "finetune.py" else of_forests)
            if "--weights" in given:
                given[-1], shared["weights"] = folder / given[-1], None
            given = [*given, *given_flags(shared), "--seed", seed, "--out", folder / name]
            commands.append((folder / name, script, list(map(str, given))))
    return commands


def call(script, given):
    """Run a script with the flags `given` in a process of its own; BadInput where it fails."""
    done = subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *given])
    if done.returncode:
        raise BadInput(
            f"python {script} ended with status {done.returncode}; fix that, then rerun this."
        )


def test_best(runs, settings):
    """Take the best of the `runs` (folders) to the test split, once; returns its accuracy there."""
    from transfer import runs as folders
    from transfer.files import read_json

    best = max(map(folders.read_run, runs), key=lambda run: run.metrics["val_accuracy"]).folder
    report = best / "test" / "metrics.json"
    if not report.exists():
        shared = {key: settings[key] for key in ("data", "cache", "skip_unreadable")}
        call("test_model.py", given_flags({"run": best, "runs": best.parent} | shared))
    return read_json(report)["accuracy"]


def figures_of(runs):
    """{row of the study, or title of OURS: our val_accuracy} of finished runs {name: its folder}."""
    from transfer.report import study_rows
    from transfer.runs import read_run

    found = {title: read_run(runs[name]).metrics["val_accuracy"] for name, title in TITLES.items()}
    for name, run in runs.items():
        only = FINE_TUNED.get(name)  # of the rows that the study gives for fine-tuned networks
        found |= {row: ours for row, _, ours in study_rows(read_run(run)) if only in (None, row)}
    return found


def in_percent(values, sign=""):
    """The mean of figures, one a seed, in percent; where there are several, with its standard error."""
    error = f" +- {100 * stdev(values) / sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):{sign}.2f}{error}"


def print_rows(figures, tested, dataset):
    """Every row of the study beside ours, then what is not the study's, then the study's conclusions.
    figures: {row: [val_accuracy of each seed]}. tested: {"study" or "ours": [test accuracy by seed]}."""
    from scipy.stats import ttest_rel

    print_notice(dataset.notice)
    print(
        "The study's rows: accuracy on the validation split in percent, +- standard error over the seeds"
    )
    header = ("study, MAMe", f"ours, {dataset.name}")
    rows = [(row, f"{study:.2f}", in_percent(figures[row])) for row, study in VAL_ACCURACY.items()]
    study = f"{100 * TEST_FIGURES['accuracy']:.0f}"
    rows.append(("the best of these on the test split", study, in_percent(tested["study"])))
    rows += [(row, "-", in_percent(figures[row])) for row in TITLES.values()]
    rows.append(("ours: the better one on the test split", "-", in_percent(tested["ours"])))
    gain = in_percent([a - b for a, b in zip(tested["ours"], tested["study"])], "+")
    rows.append(("ours: ahead of the study's best there, points", "-", gain))
    print_table(("row", *header), rows)
    print("\nDoes what the study says hold here? Differences, paired by seed, in points")
    rows = []
    for claim, ahead, behind in CLAIMS:
        gains = [a - b for a, b in zip(figures[ahead], figures[behind])]
        clear = len(gains) > 1 and ttest_rel(figures[ahead], figures[behind]).pvalue < 0.05
        holds = ("yes" if mean(gains) > 0 else "no") if clear else "not clear"
        study = f"{VAL_ACCURACY[ahead] - VAL_ACCURACY[behind]:+.2f}"
        rows.append((claim, study, in_percent(gains, "+"), holds))
    print_table(("claim", *header, "holds here"), rows)
    print("(clear: p below 0.05 by the paired t-test; that a split has few images is not in it)")


def main(argv=None):
    args = parse_args(argv)
    import common  # noqa: F401, Keras first, without its start-up lines
    from transfer import features
    from transfer.data import load_dataset
    from transfer.files import locked, read_json, write_csv, write_json
    from transfer.weights import is_published_vgg16

    dataset = load_dataset(args.data, args.seeds[0])
    flags.resolve_arguments(args, dataset)
    if not is_published_vgg16(args.weights):
        raise BadInput(
            "--weights: the study's forests are on VGG16 itself; name imagenet, none or an .h5."
        )
    features.has_dense(
        features.FeatureSpec(args.weights, "all", args.image_size, 0, args.precision)
    )
    out = Path(args.out or Path("runs") / f"study-{dataset.name}")
    print_configuration(args, dataset)
    settings = {key: value for key, value in vars(args).items() if key not in ("seeds", "out")}
    with locked(out):
        out.mkdir(exist_ok=True)
        record, same = (
            out / "study.json",
            {"arguments": settings, "fingerprint": dataset.fingerprint},
        )
        if record.exists() and read_json(record) != same:
            raise BadInput(
                f"{out} holds a rerun with other settings; name another folder with --out."
            )
        write_json(record, same)
        commands = plan(settings, args.seeds, out)
        for number, (run, script, given) in enumerate(commands, 1):
            print(f"[{number} of {len(commands)}] python {script} {' '.join(given)}", flush=True)
            if (run / "metrics.json").exists():
                print(f"  finished before: {run}/", flush=True)
            else:
                call(script, given)
        figures, tested = {}, {"study": [], "ours": []}
        for folder in (out / f"seed-{seed}" for seed in args.seeds):
            for whose, names in (("study", COMMANDS), ("ours", OURS)):
                tested[whose].append(test_best([folder / name for name in names], settings))
            for row, ours in figures_of({name: folder / name for name in COMMANDS | OURS}).items():
                figures.setdefault(row, []).append(ours)
        about = [
            {"row": row, "study": VAL_ACCURACY.get(row), "dataset": dataset.name} for row in figures
        ]
        rows = [row | dict(zip(args.seeds, figures[row["row"]])) for row in about]
        write_csv(out / "rows.csv", rows)
    print()
    print_rows(figures, tested, dataset)
    print(f"\nResults: {out}/ (rows.csv, and a folder of runs for each seed)")
    print(f"Next: python test_model.py --runs {out}/seed-{args.seeds[0]}")


if __name__ == "__main__":
    run_script(main)
