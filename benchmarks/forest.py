"""A forest and a linear classifier at MAMe's full size: 20,300 images x 12,416 features; 50 trees, leaf 2.

    python benchmarks/forest.py

Features are drawn, with 29 classes that differ a little, and lie on disk as the stored ones do. Ours is
`classifiers.fit_classifiers`, the linear classifier without and with the full-network embedding; beside it
scikit-learn's forest called plainly on the array in memory. Seconds are those of `fit`; memory is the peak
of the process, the features (1.0 GB) included. The linear classifier's iterations depend on the data: drawn
features need fewer than real ones, so seconds an iteration are what to compare.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import alternate, describe_machine, peak_memory, report, spread

IMAGES, FEATURES, CLASSES = 20_300, 12_416, 29
METHODS = ("ours", "extra-trees", "scikit-learn", "linear", "linear-discretised")


def draw_features(path, images):
    """Write features float32 (images, 12416) of 29 classes to `path`; returns the labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, images)
    centres = rng.normal(scale=0.3, size=(CLASSES, FEATURES)).astype("float32")
    array = np.lib.format.open_memmap(path, "w+", "float32", (images, FEATURES))
    for start in range(0, images, 500):
        rows = labels[start : start + 500]
        array[start : start + 500] = centres[rows] + rng.standard_normal((len(rows), FEATURES), "float32")
    array.flush()
    return labels


def work(args):
    with np.load(args.labels) as file:
        y = file["labels"]
    if args.method != "scikit-learn":
        from transfer.classifiers import fit_classifiers

        linear = args.method.startswith("linear")
        setting = {"C": 0.01} if linear else {"min_samples_leaf": 2, "n_estimators": 50}
        setting |= {"classifier": "extra-trees"} if args.method == "extra-trees" else {}
        x = np.load(args.features, mmap_mode="r")
        val, discretize = (x[:1450], y[:1450]), args.method.endswith("discretised")
        ((_, row, _, seconds),) = fit_classifiers([setting], (x, y), val, discretize, 0)
        more = {"iterations": row["iterations"]} if linear else {}
        report(seconds=seconds, peak_MB=peak_memory(), train_accuracy=row["accuracy"], **more)
    else:
        from sklearn.ensemble import RandomForestClassifier

        x = np.load(args.features)
        start = time.perf_counter()
        forest = RandomForestClassifier(50, min_samples_leaf=2, n_jobs=-1, random_state=0).fit(x, y)
        seconds = time.perf_counter() - start
        report(seconds=seconds, peak_MB=peak_memory(), train_accuracy=forest.score(x, y))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    for hidden in ("--method", "--features", "--labels"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        return work(args)
    print(f"{describe_machine()}\n{args.images} x {FEATURES} float32")
    with tempfile.TemporaryDirectory() as folder:
        features, labels = Path(folder) / "features.npy", Path(folder) / "labels.npz"
        np.savez(labels, labels=draw_features(features, args.images))
        flags = ("--features", features, "--labels", labels, "--method")
        found = alternate(__file__, {m: (*flags, m) for m in args.methods}, args.rounds)
    for name, figures in found.items():
        seconds, memory = ([f[key] for f in figures] for key in ("seconds", "peak_MB"))
        print(f"{name:20}{spread(seconds)} s, {spread(memory)} MB at the peak")
    return None


if __name__ == "__main__":
    main()
