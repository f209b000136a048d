"""Training on cached activations against the same training without a cache, at 224x224.

    python benchmarks/cached_training.py --stage dense      only the dense layers: block5_pool cached
    python benchmarks/cached_training.py --stage second     dense + block4 + block5: block3_pool cached

Both are `train.train_stage`, with --cache and with --cache none, in processes of their own that take
turns. Seconds per 1,000 training images: the pass that fills the cache, the first epoch (which traces),
the later ones. Validation images are a quarter of the training images and are part of each epoch.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from measure import PICTURES, alternate, describe_machine, fit_begins, pictures, report, spread

from transfer.flags import script_parser
from transfer.weights import load_weights

BLOCKS = {"dense": (), "second": ("block4", "block5")}


def measure(args, folder):
    from types import SimpleNamespace

    import common
    from transfer import train

    keras = common.keras
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in (("train", args.images), ("val", args.images // 4)):
        splits[split] = SimpleNamespace(
            images=pictures(count, folder), labels=rng.integers(0, 6, count)
        )
    model = common.build_model(224, 6, "iii")
    load_weights(model, "none", 0)
    stage = train.Stage("", BLOCKS[args.stage], 1e-4, args.epochs, args.batch_size, 0)
    cache = "none" if args.method == "plain" else str(folder)

    def end_epoch(resume, *given, original=train.Checkpoint.end_epoch):
        original(resume, *given)
        moments.append(time.perf_counter())

    moments, dataset = [time.perf_counter()], SimpleNamespace(name="photographs", splits=splits)
    with fit_begins(moments), mock.patch.object(train.Checkpoint, "end_epoch", end_epoch):
        train.train_stage(model, stage, dataset, cache, train.Checkpoint.read(folder))
    filling, first, *later = np.diff(moments) / args.images * 1000
    report(filling=filling, first=first, later=float(np.median(later)))


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--stage", choices=BLOCKS, default="dense")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--method", choices=("plain", "cached"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        with tempfile.TemporaryDirectory() as folder:
            return measure(args, Path(folder))
    print(f"{describe_machine()}\nstep '{args.stage}', {args.images} {PICTURES}")
    flags = ("--stage", args.stage, "--images", args.images, "--epochs", args.epochs)
    flags += ("--batch-size", args.batch_size)
    found = alternate(
        __file__, {m: (*flags, "--method", m) for m in ("plain", "cached")}, args.rounds
    )
    print("\nSeconds per 1,000 images: median (minimum to maximum)")
    for name, figures in found.items():
        for key in ("filling", "first", "later"):
            print(f"  {name:8}{key:10}{spread([f[key] for f in figures])}")
    medians = (("plain", "later"), ("cached", "filling"), ("cached", "later"))
    plain, filling, later = (np.median([f[key] for f in found[name]]) for name, key in medians)
    print(
        f"\n  20 epochs, the pass included: {20 * plain / (filling + 20 * later):.1f} times as fast"
    )
    print(f"  a later epoch: {plain / later:.1f} times as fast")
    return None


if __name__ == "__main__":
    main()
