"""What each ingredient of the strong recipe is worth, on real photographs, over three seeds.

    python benchmarks/vgg19_start.py
    python train_pretrained.py --data data/demo --weights data/vgg19-blocks1-3.keras --top gap \\
        --image-size 64 --epochs 6 --out runs/pretrained-64
    python benchmarks/recipe.py

TrashNet (six materials; needs the folder of real photographs beside the repository), 40 training and 20
validation photographs a class and the whole test split, at 48 pixels; the network comes from VGG19 blocks
1-3 and pretraining on the demo's textures. The strong recipe, then the same without one ingredient at a
time, then the study's. Every run is a call of finetune.py and test_model.py, which it prints; finished
ones are not run again. The figure is the accuracy on the test split of the epoch with the best validation
accuracy; the difference is to the strong recipe with the same seed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measure import PHOTOGRAPHS, ROOT, describe_machine

SEEDS = (0, 1, 2)
COUNTS = {"train": 40, "val": 20, "test": None}  # photographs a class
FLAGS = "--unfreeze block4 --image-size 48 --batch-size 16 --learning-rate 1e-3 --epochs 15"
FLAGS += " --fine-tune-epochs 8"
STUDY = "--recipe study"
VARIANTS = {
    "strong": "",
    "head iii instead of pooling": "--head iii",
    "Adam instead of AdamW": "--optimizer adam",
    "constant learning rate instead of cosine with warm-up": "--schedule constant",
    "no label smoothing": "--label-smoothing 0",
    "no mixup": "--mixup 0",
    "no averaged weights": "--no-average-weights",
    "the study's augmentation instead of the light one": "--augmentation study",
    "no augmentation": "--no-augment",
    "the study's recipe": STUDY,
    "the study's recipe, learning rate 1e-4": f"{STUDY} --fine-tune-learning-rate 1e-4",
}


def link_photographs(folder):
    """Make `folder`/SPLIT/CLASS with links to the first COUNTS photographs of each class."""
    for split, count in COUNTS.items():
        for of_class in sorted((PHOTOGRAPHS / split).iterdir()):
            place = folder / split / of_class.name
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(of_class.iterdir())[:count]:
                if not (place / path.name).exists():
                    (place / path.name).symlink_to(path.resolve())


def test_accuracy(run, command, threads, *flags):
    """Accuracy on the test split of the run in folder `run`, trained and tested first where needed."""
    limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    for script, more, result in (
        ("finetune.py", command, run / "metrics.json"),
        ("test_model.py", ["--run", str(run), *flags], run / f"test{''.join(flags)}" / "metrics.json"),
    ):
        if not result.exists():
            if script == "test_model.py":
                more = [*more, "--out", str(result.parent)]
            done = subprocess.run(
                [sys.executable, script, *more],
                cwd=ROOT,
                env=os.environ | limits,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{script} {shlex.join(more)} failed:\n{done.stderr[-800:]}")
    return json.loads(result.read_text())["accuracy"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="runs/pretrained-64", help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there is nothing to measure.")
    folder = ROOT / "data" / "trashnet-40"
    link_photographs(folder)
    threads = max(1, os.cpu_count() // args.jobs)
    print(describe_machine())
    print(f"TrashNet, 'VGG19 blocks 1-3', pretrained on the demo's textures; {FLAGS}\n")

    def accuracy(name, seed, *flags):
        variant = VARIANTS[name]
        recipe = "" if STUDY in variant else "--recipe strong"
        run = Path("runs") / "recipe" / f"{variant.replace('--', '').replace(' ', '-') or 'strong'}-{seed}"
        command = f"--data data/trashnet-40 --weights {args.weights} {recipe} {variant} {FLAGS}"
        command = [*command.split(), "--seed", str(seed), "--out", str(run)]
        found = test_accuracy(ROOT / run, command, threads, *flags)
        print(f"  {100 * found:.2f}  {' '.join(command)} {' '.join(flags)}", flush=True)
        return found

    tasks = [(name, seed) for seed in SEEDS for name in VARIANTS]
    with ThreadPoolExecutor(args.jobs) as pool:
        figures = dict(zip(tasks, pool.map(lambda task: accuracy(*task), tasks)))
        without = "no mirror images in the test"
        found = pool.map(lambda seed: accuracy("strong", seed, "--no-flips"), SEEDS)
        figures |= {(without, seed): figure for seed, figure in zip(SEEDS, found)}
    print("\ntest accuracy in percent, seeds 0 1 2; mean; mean difference to strong (of each seed)")
    strong = np.array([figures["strong", seed] for seed in SEEDS])
    for name in [*VARIANTS, without]:
        row = np.array([figures[name, seed] for seed in SEEDS])
        shown = " ".join(f"{100 * value:6.2f}" for value in row)
        each = " ".join(f"{100 * value:+.2f}" for value in row - strong)
        print(f"  {name:<55}{shown}  {100 * row.mean():6.2f}  {100 * (row - strong).mean():+.2f} ({each})")


if __name__ == "__main__":
    main()
