"""The study's rows, a linear classifier, and a stronger recipe with its ingredients, paired by seed.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/recipe.py --data ../shared/real/trashnet ../shared/real/rijks
    python benchmarks/recipe.py --data DIR --rows linear forest head-i --image-size 128 --precision float32

Every row is one command from the same start, and its accuracy on the test split, a network's at the epoch
with the best validation accuracy. Differences are to the same seed of the first row, in points, with their
standard error and the p of a paired t-test. Interrupted, the same command resumes.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from measure import ROOT, describe_machine
from scipy.stats import ttest_rel

from transfer.store import read_json  # noqa: E402

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


def call(script, *flags):
    """Run a script of the repository; its output is shown where it fails alone."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])


def test_accuracy(run, script, *flags):
    """Accuracy in percent on the test split of the run in `run`, made first where it is not there."""
    report = run / "test" / "metrics.json"
    if not report.exists():
        if not (run / "metrics.json").exists():
            call(script, *flags, "--out", run)
        call("test_model.py", "--run", run)
    return 100 * read_json(report)["accuracy"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=224, help="default: %(default)s")
    parser.add_argument("--precision", default="bfloat16", help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"), help="default: %(default)s")
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    figures = {}
    for data in args.data:
        name = Path(data).name
        for seed in args.seeds:
            shared = ("--data", data, "--weights", args.weights, "--seed", seed)
            shared += ("--image-size", args.image_size, "--precision", args.precision)
            for row in args.rows:
                run = args.out / f"{name}-{row}-seed-{seed}"
                found = test_accuracy(run, *ROWS[row].split(), *shared)
                figures.setdefault((name, row), []).append(found)
                print(f"  {name}, seed {seed}: {found:.2f}  {row}", flush=True)
    print(f"\ntest accuracy in percent of seeds {args.seeds}; mean; mean difference to the first row")
    for (name, row), found in figures.items():
        differences = [a - b for a, b in zip(found, figures[name, args.rows[0]])]
        error = f" +- {stdev(differences) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
        if any(differences) and error:
            error += f" (p {ttest_rel(found, figures[name, args.rows[0]]).pvalue:.2f})"
        shown = " ".join(f"{value:6.2f}" for value in found)
        print(f"  {name:<12}{row:<12}{shown}  {mean(found):6.2f}  {mean(differences):+.2f}{error}")


if __name__ == "__main__":
    main()
