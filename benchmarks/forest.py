"""A forest and a linear classifier at MAMe's full size: 20,300 images x 12,416 features; 50 trees, leaf 2.

    python benchmarks/forest.py
    python benchmarks/forest.py --stored features/A features/B features/C --methods linear --path

Features are drawn, with 29 classes that differ a little, or with --stored real ones: those of several
folders of extract_features.py side by side, as many columns as wanted (benchmarks/README.md). They lie on
disk as the stored ones do. Ours is `classifiers.fit_classifiers`, the linear classifier without and with
the full-network embedding, for C 0.01 or with --path for all that `--classifier linear` walks; beside it
scikit-learn's forest called plainly on the array in memory. Seconds are those of `fit`; memory is the peak
of the process, the features (1.0 GB) included.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import alternate, describe_machine, peak_memory, report, spread

IMAGES, FEATURES, CLASSES = 20_300, 12_416, 29
METHODS = ("ours", "extra-trees", "scikit-learn", "linear", "linear-discretised")


def draw_features(path, images):
    """Write features float32 (images, 12416) of 29 classes to `path`; returns the labels."""
    centres = np.random.default_rng(0).normal(scale=0.3, size=(CLASSES, FEATURES)).astype("float32")
    rng = np.random.default_rng(images)
    labels = rng.integers(0, CLASSES, images)
    array = np.lib.format.open_memmap(path, "w+", "float32", (images, FEATURES))
    for start in range(0, images, 500):
        rows = labels[start : start + 500]
        array[start : start + 500] = centres[rows] + rng.standard_normal((len(rows), FEATURES), "float32")
    array.flush()
    return labels


def join_features(path, folders, split):
    """Write the first 12,416 columns of the features of a split in `folders` to `path`; the labels."""
    parts = [np.load(f"{folder}/{split}.npy", mmap_mode="r") for folder in folders]
    np.save(path, np.concatenate(parts, axis=1)[:, :FEATURES])
    with open(f"{folders[0]}/{split}.csv", newline="", encoding="utf-8") as file:
        return np.array([int(row["label"]) for row in csv.DictReader(file)])


def work(args):
    with np.load(args.folder / "labels.npz") as file:
        y, y_val = file["train"], file["val"]
    if args.method != "scikit-learn":
        from random_forest import C_PATH
        from transfer.classifiers import fit_classifiers

        settings = [{"min_samples_leaf": 2, "n_estimators": 50}]
        if args.method.startswith("linear"):
            settings = [{"C": c} for c in (C_PATH if args.path else (0.01,))]
        elif args.method == "extra-trees":
            settings[0]["classifier"] = "extra-trees"
        x = np.load(args.folder / "train.npy", mmap_mode="r")
        val, discretize = (np.load(args.folder / "val.npy"), y_val), args.method.endswith("discretised")
        fitted = list(fit_classifiers(settings, (x, y), val, discretize, 0))
        rows = [row for _, row, _, _ in fitted]
        more = {"iterations": sum(row["iterations"] for row in rows)} if "iterations" in rows[0] else {}
        more |= {"val_accuracy": max(row["val_accuracy"] for row in rows)}
        report(seconds=sum(seconds for *_, seconds in fitted), peak_MB=peak_memory(), **more)
    else:
        from sklearn.ensemble import RandomForestClassifier

        x = np.load(args.folder / "train.npy")
        start = time.perf_counter()
        forest = RandomForestClassifier(50, min_samples_leaf=2, n_jobs=-1, random_state=0).fit(x, y)
        seconds = time.perf_counter() - start
        val_accuracy = forest.score(np.load(args.folder / "val.npy"), y_val)
        report(seconds=seconds, peak_MB=peak_memory(), val_accuracy=val_accuracy)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--stored", nargs="+", metavar="DIR", help="real features instead of drawn ones")
    parser.add_argument("--path", action="store_true", help="fit the linear classifier for every C")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        return work(args)
    with tempfile.TemporaryDirectory() as folder:
        folder, labels = Path(folder), {}
        for split, images in (("train", args.images), ("val", 1450)):
            path = folder / f"{split}.npy"
            if args.stored:
                labels[split] = join_features(path, args.stored, split)
            else:
                labels[split] = draw_features(path, images)
        np.savez(folder / "labels.npz", **labels)
        kind = "stored" if args.stored else "drawn"
        print(f"{describe_machine()}\n{len(labels['train'])} x {FEATURES} float32, {kind}")
        flags = ("--folder", folder, *["--path"] * args.path, "--method")
        found = alternate(__file__, {m: (*flags, m) for m in args.methods}, args.rounds)
    for name, figures in found.items():
        seconds, memory = ([f[key] for f in figures] for key in ("seconds", "peak_MB"))
        print(f"{name:20}{spread(seconds)} s, {spread(memory)} MB at the peak")
    return None


if __name__ == "__main__":
    main()
