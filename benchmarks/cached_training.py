"""Training on cached activations against the same training without a cache, at 224x224.

    python benchmarks/cached_training.py --stage dense     only the dense layers: block5_pool cached
    python benchmarks/cached_training.py --stage second    and block4, block5: block3_pool cached

Both train head iii as finetune.py does, with --cache and with --cache none, in processes of their
own that take turns. Seconds per 1,000 training images: filling the cache, the first epoch (which
traces), the later ones. Validation images are a quarter of the training images and are part of each
epoch.
"""

import tempfile
from pathlib import Path

import numpy as np
from measure import PICTURES, alternate, describe_machine, pictures, spread

from transfer.console import print_table
from transfer.flags import script_parser

BLOCKS = {"dense": (), "second": ("block4", "block5")}


def measure_training(stage, count, epochs, cached):
    """Seconds per 1,000 training images of each part of a training, with or without a cache."""
    from ours import random_vgg16, time_training

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        images = {
            "train": pictures(folder / "train.npy", count),
            "val": pictures(folder / "val.npy", count // 4),
        }
        model = random_vgg16(224, 6, "iii")
        cache = str(folder) if cached else "none"
        seconds = time_training(model, images, BLOCKS[stage], epochs, folder / "run", cache)
    thousands = count / 1000
    return {
        "filling": seconds["filling"] / thousands,
        "first": seconds["epochs"][0] / thousands,
        "later": float(np.median(seconds["epochs"][1:])) / thousands,
    }


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--stage", choices=BLOCKS, default="dense", help="what trains (default: %(default)s)")
    add("--images", type=int, default=96, help="training images (default: %(default)s)")
    add("--epochs", type=int, default=4, help="number of epochs (default: %(default)s)")
    add("--rounds", type=int, default=2, help="measurements of each (default: %(default)s)")
    args = parser.parse_args()

    print(f"{describe_machine()}\nstage '{args.stage}', {args.images} {PICTURES}")
    settings = (args.stage, args.images, args.epochs)
    workers = {
        "plain": (measure_training, *settings, False),
        "cached": (measure_training, *settings, True),
    }
    found = alternate(workers, args.rounds)

    rows = []
    medians = {}
    for name, figures in found.items():
        for key in figures[0]:
            values = [f[key] for f in figures]
            medians[name, key] = np.median(values)
            rows.append((name, key, spread(values)))
    print()
    print_table(("seconds per 1,000 images", "", "median (minimum to maximum)"), rows)
    plain = medians["plain", "later"]
    later = medians["cached", "later"]
    all_cached = medians["cached", "filling"] + 20 * later
    print(f"\n  20 epochs, filling included: {20 * plain / all_cached:.1f} times as fast")
    print(f"  a later epoch: {plain / later:.1f} times as fast")


if __name__ == "__main__":
    main()
