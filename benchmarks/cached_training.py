"""Training on cached activations against the same training without a cache, at 224x224.

    python benchmarks/cached_training.py --step dense      only the dense layers: block5_pool cached
    python benchmarks/cached_training.py --step second     dense + block4 + block5: block3_pool cached
    python benchmarks/cached_training.py --step second --input random

Both are `training.train_step`, with --cache and with --cache none, in processes of their own that take
turns. Seconds per 1,000 training images: the pass that fills the cache, the first epoch (which traces),
the later ones. Validation images are a quarter of the training images and are part of each epoch.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from measure import PICTURES, alternate, describe_machine, pictures, report, spread

BLOCKS = {"dense": (), "second": ("block4", "block5")}


def work(args):
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args, folder):
    import common
    from transfer import training, weights

    keras = common.import_keras()
    keras.utils.set_random_seed(0)
    counts = {"train": args.images, "val": args.images // 4}
    rng = np.random.default_rng(0)
    images, splits = {}, {}
    for split, count in counts.items():
        images[split] = pictures(count, folder)
        if args.input == "random":
            path = folder / f"random-{count}.npy"
            np.save(path, rng.integers(0, 256, images[split].shape, "uint8"))
            images[split] = np.load(path, mmap_mode="r")
        splits[split] = SimpleNamespace(labels=rng.integers(0, 6, count))
    model = common.build_model(224, 6, "iii")
    weights.load_weights(model, "none", 0)
    step = {"name": "", "blocks": BLOCKS[args.step], "augment": False}
    step |= {"learning_rate": 1e-4, "epochs": args.epochs}
    cache = "none" if args.method == "plain" else str(folder)
    settings = SimpleNamespace(batch_size=args.batch_size, seed=0, optimizer="adam", cache=cache)
    settings.precision, settings.cache_dtype = "float32", "float32"
    moments, original = [time.perf_counter()], training.batches

    def watched(*arguments, **flags):  # the first call: the cache is filled, the training begins
        if len(moments) == 1:
            moments.append(time.perf_counter())
        return original(*arguments, **flags)

    training.batches = watched
    dataset = SimpleNamespace(splits=splits)
    on_epoch_end = lambda *_: moments.append(time.perf_counter())  # noqa: E731
    training.train_step(model, step, dataset, images, settings, 0, folder, on_epoch_end)
    filling, first, *later = np.diff(moments) / args.images * 1000
    report(filling=filling, first=first, later=float(np.median(later)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", choices=BLOCKS, default="dense")
    parser.add_argument("--input", choices=("photographs", "random"), default="photographs")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--method", choices=("plain", "cached"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        return work(args)
    kind = "random images" if args.input == "random" else PICTURES
    print(f"{describe_machine()}\nstep '{args.step}', {args.images} {kind}")
    flags = ("--step", args.step, "--input", args.input, "--images", args.images)
    flags += ("--epochs", args.epochs, "--batch-size", args.batch_size)
    found = alternate(__file__, {m: (*flags, "--method", m) for m in ("plain", "cached")}, args.rounds)
    print("\nSeconds per 1,000 images: median (minimum to maximum)")
    for name, figures in found.items():
        for key in ("filling", "first", "later"):
            print(f"  {name:8}{key:10}{spread([f[key] for f in figures])}")
    median = {
        name: {key: np.median([f[key] for f in figures]) for key in figures[0]}
        for name, figures in found.items()
    }
    plain, ours = median["plain"]["later"], median["cached"]
    print(
        f"\n  20 epochs, the pass included: {20 * plain / (ours['filling'] + 20 * ours['later']):.1f} times"
    )
    print(f"  a later epoch: {plain / ours['later']:.1f} times as fast")
    return None


if __name__ == "__main__":
    main()
