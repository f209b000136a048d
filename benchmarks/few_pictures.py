"""Which command for how many pictures: 10, 30 and 100 photographs a class, paired by seed.

    python benchmarks/vgg16_start.py
    python benchmarks/few_pictures.py --data ../shared/real/trashnet

The first N training photographs of each class and a fifth of that for validation are linked into
data/few/; the test split is whole. The linear classifier and the forest stand on the start's features, the
strong recipe and the study's best strategy train from it, as long as each other: the fewer the pictures,
the more epochs. Accuracy on the test split in percent. Interrupted, the same command goes on.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev

from measure import describe_machine
from recipe import COMPUTED, RATES, test_accuracy

EPOCHS = {10: (60, 30), 30: (30, 20), 100: (10, 6)}  # photographs a class: epochs of the head, and after it
ROWS = ("forest", "linear", "strong", "study")
FOREST = ("random_forest.py", "--leaf", "2", "--trees", "50")
LINEAR = ("random_forest.py", "--classifier", "linear", "--discretize")


def link_photographs(data, folder, count):
    """Make folder/SPLIT/CLASS with links to the first `count` training photographs of each class."""
    for split, wanted in (("train", count), ("val", max(2, count // 5)), ("test", None)):
        for of_class in sorted((data / split).iterdir()):
            place = folder / split / of_class.name
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(of_class.iterdir())[:wanted]:
                if not (place / path.name).exists():
                    (place / path.name).symlink_to(path.resolve())


def commands(count, weights):
    """{row: (script, flags)} of what is compared on `count` photographs a class."""
    head, after = (str(epochs) for epochs in EPOCHS[count])
    features = (*COMPUTED, "--model", weights)
    network = (*COMPUTED, *RATES, "--weights", weights, "--epochs", head, "--fine-tune-epochs")
    half = str(int(after) // 2)  # of each of its two steps
    return {
        "forest": (*FOREST, *features),
        "linear": (*LINEAR, *features),
        "strong": ("finetune.py", "--recipe", "strong", *network, after),
        "study": ("finetune.py", "--unfreeze", "stepped", *network, half),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--weights", default="data/vgg16-start.h5", help="default: %(default)s")
    parser.add_argument("--counts", type=int, nargs="+", choices=tuple(EPOCHS), default=tuple(EPOCHS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    figures = {}
    for seed in args.seeds:
        for count in args.counts:
            folder = Path("data/few") / f"{args.data.name}-{count}"
            link_photographs(args.data, folder, count)
            for row in args.rows:
                script, *flags = commands(count, args.weights)[row]
                run = Path("runs/few") / f"{folder.name}-{row}-seed-{seed}"
                found = test_accuracy(run, script, "--data", folder, "--seed", seed, *flags)
                figures.setdefault((count, row), []).append(found)
                print(f"  {count} a class, seed {seed}: {found:.2f}  {row}", flush=True)
    print(f"\n{args.data.name}: test accuracy in percent of seeds {args.seeds}; mean +- standard error")
    for (count, row), found in figures.items():
        error = f" +- {stdev(found) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
        shown = " ".join(f"{value:6.2f}" for value in found)
        print(f"  {count:4} a class  {row:<8}{shown}  {mean(found):6.2f}{error}")


if __name__ == "__main__":
    main()
