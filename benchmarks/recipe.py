"""The study's rows, a linear classifier, and a stronger recipe with its ingredients, paired by seed.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/recipe.py --data ../shared/real/trashnet ../shared/real/rijks
    python benchmarks/recipe.py --data DIR --rows linear forest head-i --image-size 128 --precision float32
    python benchmarks/recipe.py --data DIR --rows linear strong --per-class 10 30

Every row is one command from the same start, and its accuracy on the test split, a network's at the epoch
with the best validation accuracy. Differences are to the same seed of the first row, in points, with their
standard error and the p of a paired t-test. Interrupted, the same command resumes. --plot draws the means
beside the study's, each with the 95% interval that the number of test pictures leaves (Wilson). --per-class
has so many training pictures of each class drawn by the seed; validation and test stay whole.
"""

import subprocess
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from measure import ROOT, describe_machine, few_of_each
from scipy.stats import ttest_rel

from transfer.data import load_dataset
from transfer.files import read_json
from transfer.flags import script_parser
from transfer.study import SPLITS, VAL_ACCURACY

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
STUDY = {"head-i": "head i", "head-ii": "head ii", "head-iii": "head iii"}  # what it calls them
STUDY |= {"forest": "forest, all layers, leaf 2", "study": "stepwise, no augmentation"}


def fewer_pictures(data, count, seed):
    """A folder of links to the pictures in `data`/{train,val,test}, of train `count` of each class."""
    folder = Path("data/fewer") / f"{Path(data).name}-{count}-seed-{seed}"
    splits = load_dataset(data).splits
    train, val, test = (splits[split].files for split in SPLITS)
    for file in (*train[few_of_each(splits["train"].labels, count, seed)], *val, *test):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if not (folder / file).exists():
            (folder / file).symlink_to((Path(data) / file).resolve())
    return folder


def tested(run, script, *flags):
    """Accuracy in percent on the test split of the run in `run`, made first where it is not there, and how
    many images that has."""
    report = run / "test" / "metrics.json"
    commands = {run / "metrics.json": (ROOT / script, *flags, "--out", run)}
    commands[report] = ROOT / "test_model.py", "--run", run
    for made, command in commands.items():
        if not made.exists():
            command = [sys.executable, *map(str, command)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    figures = read_json(report)
    return 100 * figures["accuracy"], figures["images"]


def plot_rows(figures, images, title, path):
    """Draw the mean of each row on each set beside the study's. figures: {(set, row): percents, one a
    seed}. images: {set: how many its test split has}."""
    import common  # noqa: F401, Keras first, without its start-up lines
    from transfer.plots import new_figure, save_figure
    from transfer.report import wilson

    measured = {row for _, row in figures}
    rows = [
        row for row in dict.fromkeys((*STUDY, *ROWS)) if row in measured
    ]  # the study's come first
    width, figure, at = 0.8 / (1 + len(images)), new_figure(9, 3.6), np.arange(len(rows))
    axes = figure.subplots()
    study = [VAL_ACCURACY.get(STUDY.get(row), np.nan) for row in rows]
    axes.bar(at, study, width, color="lightgrey", label="the study: MAMe, validation")
    for number, (name, count) in enumerate(images.items(), 1):
        heights = np.array([mean(figures[name, row]) for row in rows])
        low, high = np.transpose([wilson(height / 100, count) for height in heights]) * 100
        ends = {"yerr": (heights - low, high - heights), "error_kw": {"linewidth": 1}, "capsize": 2}
        axes.bar(at + number * width, heights, width, label=f"ours: {name}, test", **ends)
    axes.set_xticks(at + width * len(images) / 2, rows)
    axes.set(ylim=(0, 100), ylabel="accuracy in percent", xlabel=title)
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    save_figure(figure, path, None)


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=224, help="default: %(default)s")
    parser.add_argument("--precision", default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW"
    )
    parser.add_argument(
        "--per-class", type=int, nargs="+", default=[0], metavar="N", help="default: all"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the means as PNG")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/recipe"), help="default: %(default)s"
    )
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    figures, images = {}, {}
    for data, count in product(args.data, args.per_class):
        name = Path(data).name + (f"-{count}" if count else "")
        for seed in args.seeds:
            folder = fewer_pictures(data, count, seed) if count else data
            shared = ("--data", folder, "--weights", args.weights, "--seed", seed)
            shared += ("--image-size", args.image_size, "--precision", args.precision)
            for row in args.rows:
                run = args.out / f"{name}-{args.image_size}-{args.precision}-{row}-seed-{seed}"
                found, images[name] = tested(run, *ROWS[row].split(), *shared)
                figures.setdefault((name, row), []).append(found)
                print(f"  {name}, seed {seed}: {found:.2f}  {row}", flush=True)
    print(
        f"\ntest accuracy in percent of seeds {args.seeds}; mean; mean difference to the first row"
    )
    for (name, row), found in figures.items():
        differences = [a - b for a, b in zip(found, figures[name, args.rows[0]])]
        error = f" +- {stdev(differences) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
        if any(differences) and error:
            error += f" (p {ttest_rel(found, figures[name, args.rows[0]]).pvalue:.2f})"
        shown = " ".join(f"{value:6.2f}" for value in found)
        print(f"  {name:<12}{row:<12}{shown}  {mean(found):6.2f}  {mean(differences):+.2f}{error}")
    if args.plot:
        seeds = ", ".join(map(str, args.seeds))
        title = (
            f"pictures of {args.image_size} pixels a side; means of seeds {seeds}; 95% intervals"
        )
        plot_rows(figures, images, title, args.plot)
        print(f"Drawn: {args.plot}")


if __name__ == "__main__":
    main()
