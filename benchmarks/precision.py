"""What bfloat16 compute and float16 caches do to features and accuracy, on real photographs.

    python benchmarks/precision.py

TrashNet (six materials; needs the folder of real photographs beside the repository), with the network that
`benchmarks/vgg16_start.py` writes: features of all convolutions by float32 and by
bfloat16, a forest of 50 trees on each; then head iii trained for 15 epochs on block5_pool of either
precision, cached as float32 and as float16. Three seeds; the same images, batches and weights for all.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from types import SimpleNamespace

import numpy as np
from measure import PHOTOGRAPHS, describe_machine

EPOCHS, SEEDS = 15, (0, 1, 2)


def photographs(split, per_class):
    """(paths, labels) of the first `per_class` photographs of each class."""
    folders = sorted((PHOTOGRAPHS / split).iterdir())
    chosen = [
        (path, n) for n, folder in enumerate(folders) for path in sorted(folder.iterdir())[:per_class]
    ]
    return [path for path, _ in chosen], np.array([n for _, n in chosen])


def accuracies(scores):
    """Percentages of each seed and their mean."""
    return f"{', '.join(f'{100 * s:.2f}' for s in scores)}; mean {100 * np.mean(scores):.2f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-class", type=int, default=80, help="default: %(default)s")
    parser.add_argument("--image-size", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--weights", default="data/vgg16-start.h5", help="default: %(default)s")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there is nothing to measure.")
    from transfer.activations import Kept
    from transfer.recipes import Step
    from transfer.resume import Resume, best_epoch

    import common
    from transfer import training, weights
    from transfer.images import decode_image

    keras = common.import_keras()

    def started(args, precision):
        model = common.build_model(args.image_size, 6, "iii")
        weights.load_weights(model, args.weights, 0)
        return weights.with_precision(model, precision)

    from sklearn.ensemble import RandomForestClassifier

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        splits = {}
        for split, count in (("train", args.per_class), ("val", 100)):
            paths, labels = photographs(split, count)
            np.save(
                f"{folder}/{split}.npy", np.stack([decode_image(path, args.image_size) for path in paths])
            )
            images = np.load(f"{folder}/{split}.npy", mmap_mode="r")
            splits[split] = SimpleNamespace(images=images, labels=labels)
        train, val = splits["train"], splits["val"]
        print(f"TrashNet, {len(train.labels)} train, {len(val.labels)} val; {args.weights}\n")
        features = {}
        for precision in ("float32", "bfloat16"):
            model = started(args, precision)
            pooled, _ = common.pooled_model(model, common.convolutions(model))
            start = time.perf_counter()
            for name, split in splits.items():
                produce, count = common.outputs_of(pooled, split.images, 32), len(split.labels)
                parts = [produce(n, min(n + 32, count)) for n in range(0, count, 32)]
                features[precision, name] = np.concatenate(parts)
            rate = (len(train.labels) + len(val.labels)) / (time.perf_counter() - start)
            scores = []
            for seed in SEEDS:
                forest = RandomForestClassifier(50, min_samples_leaf=2, n_jobs=-1, random_state=seed)
                forest.fit(features[precision, "train"], train.labels)
                scores.append(forest.score(features[precision, "val"], val.labels))
            print(f"  forest on {precision} features ({rate:.1f} images/s): {accuracies(scores)}")
        one, two = features["float32", "val"], features["bfloat16", "val"]
        difference = np.linalg.norm(one - two) / np.linalg.norm(one)
        print(f"  bfloat16 features differ by {difference:.1e} of their norm\n")
        dataset = SimpleNamespace(name="trashnet", splits=splits)
        for precision, dtype in (("float32", "float32"), ("float32", "float16"), ("bfloat16", "float16")):
            scores = []
            for seed in SEEDS:
                keras.utils.set_random_seed(seed)
                model = started(args, precision)
                with tempfile.TemporaryDirectory() as run:
                    resume = Resume.read(run)
                    step = Step("", (), 1e-4, EPOCHS, 32, seed)
                    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                        training.train_step(model, step, dataset, Kept(folder, dtype), resume)
                    scores.append(best_epoch(resume.history)["val_accuracy"])
            print(f"  head iii, {precision} compute, {dtype} cache: {accuracies(scores)}")


if __name__ == "__main__":
    main()
