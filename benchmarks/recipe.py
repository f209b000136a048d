"""The study's rows, a linear classifier, and a stronger recipe with its ingredients, by seed.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/recipe.py --data ../shared/real/trashnet ../shared/real/rijks
    python benchmarks/recipe.py --data DIR --rows linear forest head-i --image-size 128
    python benchmarks/recipe.py --data DIR --rows linear strong --per-class 10 30

Every row is one command from the same start, and its accuracy on the test split, a network's at the
epoch with the best validation accuracy. Differences are to the same seed of the first row, in
points, with their standard error and the p of a paired t-test. Interrupted, the same command
resumes. --plot shows the means beside the study's, each with the 95% interval that the number of
test pictures leaves (Wilson). --per-class trains on so many random pictures of each class;
validation and test stay whole.
"""

import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
from measure import ROOT, describe_machine, few_of_each

from transfer.console import print_table
from transfer.data import load_dataset
from transfer.files import read_json
from transfer.flags import script_parser
from transfer.stats import in_percent, paired_p, wilson
from transfer.study import VAL_ACCURACY

ROWS = {
    "strong": "finetune.py --recipe strong",
    "augmented": "finetune.py --recipe strong --augment",
    "rate-1e-4": "finetune.py --recipe strong --fine-tune-learning-rate 1e-4",
    "rate-1e-5": "finetune.py --recipe strong --fine-tune-learning-rate 1e-5",
    "shorter": "finetune.py --recipe strong --fine-tune-epochs 6",
    "linear": "random_forest.py --classifier linear",
    "forest": "random_forest.py --leaf 2 --trees 50",
    "head-i": "finetune.py --head i",
    "head-ii": "finetune.py --head ii",
    "head-iii": "finetune.py --head iii",
    "study": "finetune.py --head iii --unfreeze stepped",
}
STUDY_NAMES = {  # what the study calls them
    "head-i": "head i",
    "head-ii": "head ii",
    "head-iii": "head iii",
    "forest": "forest, all layers, leaf 2",
    "study": "stepwise, no augmentation",
}
RUNS = Path("runs/recipe")


def link_fewer(data, count, seed):
    """A folder of links to the pictures in `data`: of train `count` of each class, all others."""
    folder = Path("data/fewer") / f"{Path(data).name}-{count}-seed-{seed}"
    splits = load_dataset(data).splits
    rows = few_of_each(splits["train"].labels, count, seed)
    files = [*splits["train"].files[rows], *splits["val"].files, *splits["test"].files]
    for file in files:
        link = folder / file
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to((Path(data) / file).resolve())
    return folder


def make(result, *command):
    """The content of the JSON file `result`; the command that writes it runs where it lacks."""
    if not result.exists():
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return read_json(result)


def test_figures(run, row, flags):
    """metrics.json of the test of `run`, which is trained first where it is not there."""
    script, *of_row = ROWS[row].split()
    make(run / "metrics.json", ROOT / script, *of_row, *flags, "--out", run)
    return make(run / "test" / "metrics.json", ROOT / "test_model.py", "--run", run)


def measure_rows(args):
    """({(set, row): test accuracies, one a seed}, {set: number of test pictures})."""
    accuracies = {}
    images = {}
    for data, count, seed in product(args.data, args.per_class, args.seeds):
        name = Path(data).name
        folder = data
        if count:
            name = f"{name}-{count}"
            folder = link_fewer(data, count, seed)
        flags = ("--data", folder, "--weights", args.weights, "--seed", seed)
        flags += ("--image-size", args.image_size, "--precision", args.precision)
        for row in args.rows:
            run = RUNS / f"{name}-{args.image_size}-{args.precision}-{row}-seed-{seed}"
            figures = test_figures(run, row, flags)
            images[name] = figures["images"]
            accuracies.setdefault((name, row), []).append(figures["accuracy"])
            print(f"  {name}, seed {seed}: {figures['accuracy']:.2%}  {row}", flush=True)
    return accuracies, images


def print_differences(accuracies, first, seeds):
    """Each row's accuracies, their mean, and its mean difference to the row `first`."""
    table = []
    for (name, row), found in accuracies.items():
        others = accuracies[name, first]
        gains = [ours - theirs for ours, theirs in zip(found, others)]
        each = " ".join(f"{100 * accuracy:6.2f}" for accuracy in found)
        p = f"{paired_p(found, others):.2f}"
        table.append((name, row, each, in_percent(found), in_percent(gains, "+"), p))
    print("\nTest accuracy in percent")
    seeds = " ".join(f"seed {seed}" for seed in seeds)
    print_table(("set", "row", seeds, "mean", f"to {first}", "p"), table)


def plot_rows(accuracies, images, title, path):
    """Plot the mean of each row on each set beside the study's figure, as PNG.

    accuracies: {(set, row): fractions, one a seed}. images: {set: number of its test pictures}.
    """
    from transfer.plots import new_figure, save_figure

    measured = {row for _, row in accuracies}
    rows = [row for row in dict.fromkeys((*STUDY_NAMES, *ROWS)) if row in measured]
    width = 0.8 / (1 + len(images))
    at = np.arange(len(rows))
    figure = new_figure(9, 3.6)
    axes = figure.subplots()

    study = [VAL_ACCURACY.get(STUDY_NAMES.get(row), np.nan) for row in rows]
    axes.bar(at, study, width, color="lightgrey", label="the study: MAMe, validation")
    for number, (name, count) in enumerate(images.items(), 1):
        means = [mean(accuracies[name, row]) for row in rows]
        low, high = np.transpose([wilson(accuracy, count) for accuracy in means])
        heights = 100 * np.array(means)
        axes.bar(
            at + number * width,
            heights,
            width,
            yerr=(heights - 100 * low, 100 * high - heights),
            label=f"ours: {name}, test",
        )
    axes.set_xticks(at + width * len(images) / 2, rows)
    axes.set(ylim=(0, 100), ylabel="accuracy in percent", xlabel=title)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    save_figure(figure, path, None)


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="DIR", help="folders of pictures")
    add("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    add("--image-size", type=int, default=224, help="pixels a side (default: %(default)s)")
    add("--precision", default="bfloat16", help="default: %(default)s")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="default: all")
    add("--per-class", type=int, nargs="+", default=[0], metavar="N", help="default: all")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    add("--plot", type=Path, metavar="FILE", help="plot the means as PNG")
    args = parser.parse_args()

    print(describe_machine(), flush=True)
    accuracies, images = measure_rows(args)
    print_differences(accuracies, args.rows[0], args.seeds)
    if args.plot:
        title = f"pictures of {args.image_size} pixels; means over seeds; 95% intervals"
        plot_rows(accuracies, images, title, args.plot)
        print(f"Plotted: {args.plot}")


if __name__ == "__main__":
    main()
