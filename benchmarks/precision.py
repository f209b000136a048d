"""What bfloat16 compute and float16 caches do to features and accuracy, on real photographs.

    python benchmarks/precision.py

TrashNet (six materials; needs the folder of real photographs beside the repository), with VGG19 blocks
1-3 from ImageNet and He-normal kernels after them: features of all convolutions by float32 and by
bfloat16, a forest of 50 trees on each; then head iii trained for 15 epochs on block5_pool of either
precision, cached as float32 and as float16. Three seeds; the same images, batches and weights for all.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from measure import PHOTOGRAPHS, describe_machine, load_vgg19

EPOCHS, SEEDS = 15, (0, 1, 2)


def photographs(split, per_class):
    """(paths, labels) of the first `per_class` photographs of each class."""
    folders = sorted((PHOTOGRAPHS / split).iterdir())
    chosen = [
        (path, n) for n, folder in enumerate(folders) for path in sorted(folder.iterdir())[:per_class]
    ]
    return [path for path, _ in chosen], np.array([n for _, n in chosen])


def partly_pretrained(common, weights):
    """VGG16 with head iii, its first seven convolutions those of an ImageNet-trained VGG19."""
    model = common.build_model(224, 6, "iii")
    weights.load_weights(model, "none", 0)
    load_vgg19(model)
    return model


def accuracies(scores):
    """Percentages of each seed and their mean."""
    return f"{', '.join(f'{100 * s:.2f}' for s in scores)}; mean {100 * np.mean(scores):.2f}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--per-class", type=int, default=80, help="default: %(default)s")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there is nothing to measure.")
    import common
    from transfer import training, weights
    from transfer.images import decode_image

    keras = common.import_keras()
    from sklearn.ensemble import RandomForestClassifier

    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        images, labels = {}, {}
        for split, count in (("train", args.per_class), ("val", 100)):
            paths, labels[split] = photographs(split, count)
            np.save(f"{folder}/{split}.npy", np.stack([decode_image(path, 224) for path in paths]))
            images[split] = np.load(f"{folder}/{split}.npy", mmap_mode="r")
        print(f"TrashNet, {len(labels['train'])} train, {len(labels['val'])} val; VGG19 blocks 1-3\n")
        features = {}
        for precision in ("float32", "bfloat16"):
            model = weights.with_precision(partly_pretrained(common, weights), precision)
            pooled, _ = common.pooled_model(model, common.convolutions(model))
            start = time.perf_counter()
            for split, array in images.items():
                produce = common.outputs_of(pooled, array, 32)
                parts = [produce(n, min(n + 32, len(array))) for n in range(0, len(array), 32)]
                features[precision, split] = np.concatenate(parts)
            rate = sum(map(len, images.values())) / (time.perf_counter() - start)
            scores = []
            for seed in SEEDS:
                forest = RandomForestClassifier(50, min_samples_leaf=2, n_jobs=-1, random_state=seed)
                forest.fit(features[precision, "train"], labels["train"])
                scores.append(forest.score(features[precision, "val"], labels["val"]))
            print(f"  forest on {precision} features ({rate:.1f} images/s): {accuracies(scores)}")
        one, two = features["float32", "val"], features["bfloat16", "val"]
        difference = np.linalg.norm(one - two) / np.linalg.norm(one)
        print(f"  bfloat16 features differ by {difference:.1e} of their norm\n")
        dataset = SimpleNamespace(splits={s: SimpleNamespace(labels=labels[s]) for s in labels})
        for precision, dtype in (("float32", "float32"), ("float32", "float16"), ("bfloat16", "float16")):
            scores = []
            for seed in SEEDS:
                keras.utils.set_random_seed(seed)
                model = weights.with_precision(partly_pretrained(common, weights), precision)
                step = {"name": "", "blocks": (), "augment": False, "learning_rate": 1e-4, "epochs": EPOCHS}
                settings = SimpleNamespace(batch_size=32, seed=seed, optimizer="adam", cache=folder)
                settings.precision, settings.cache_dtype = precision, dtype
                rows = []
                training.train_step(
                    model,
                    step,
                    dataset,
                    images,
                    settings,
                    0,
                    Path(folder),
                    lambda _, figures, rows=rows: rows.append(figures["val_accuracy"]),
                )
                scores.append(max(rows))
            print(f"  head iii, {precision} compute, {dtype} cache: {accuracies(scores)}")


if __name__ == "__main__":
    main()
