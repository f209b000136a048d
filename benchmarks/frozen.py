"""What pays on frozen features, by five-fold cross-validation over all pictures of a set.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/frozen.py --data ../shared/real/rijks ../shared/real/trashnet --sizes 224 320

Forests and linear classifiers on the means of the 13 convolutions, each on the same folds. A difference is
to the first row, picture by picture, in points with its standard error. "0..1" gives the convolutions
pictures scaled to 0..1 instead of VGG16's own preprocessing. Then the study's forests; then the linear
classifier fitted on so many training pictures of each class (three draws), on the test split.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from measure import ROOT, describe_machine, few_of_each
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import common  # noqa: E402, Keras first
from common import keras
from transfer import features
from transfer.data import load_dataset
from transfer.files import read_json
from transfer.flags import script_parser
from transfer.images import load_images
from transfer.study import SPLITS

FOLDS, DRAWS, COUNTS = 5, 3, (10, 30, 100)


def linear(before=common.signed_square_root, alpha=1000.0, **settings):
    """The product's linear classifier at one alpha, without what makes its scores probabilities."""
    return make_pipeline(
        FunctionTransformer(before), StandardScaler(), RidgeClassifier(alpha, **settings)
    )


def embedding(classifier):
    """The full-network embedding, then a classifier."""
    return make_pipeline(StandardScaler(), FunctionTransformer(common.discretize), classifier)


def compared_rows(x):
    """What the product's linear classifier is compared with on the same features `x`, as `study_rows`."""
    rows = {
        "linear, alpha 300": linear(alpha=300.0),
        "linear, without square roots": linear(before=None),
        "linear, discretized": embedding(RidgeClassifier(1000.0)),
        "linear, --balanced": linear(class_weight="balanced"),
        "logistic regression": make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=500)
        ),
        "forest": forest(),
        "forest, --balanced": forest(class_weight="balanced"),
    }
    return {title: (classifier, x) for title, classifier in rows.items()}


def forest(leaf=2, **settings):
    """A forest of the study, its best one where nothing else is said."""
    return RandomForestClassifier(50, min_samples_leaf=leaf, n_jobs=-1, random_state=0, **settings)


def study_rows(folder, x):
    """The study's forests on the features `x` of all convolutions, {title: (classifier, features)}."""
    columns = read_json(folder / "features.json")["layers"]
    fewer = {
        layers: features.select_columns(x, columns, layers) for layers in ("last", "block5_conv3")
    }
    rows = {"forest, leaf 7, all": (forest(7), x)}
    rows |= {f"forest, leaf 7, {layers}": (forest(7), part) for layers, part in fewer.items()}
    return rows | {
        "forest, leaf 2, all": (forest(), x),
        "the same, discretized": (embedding(forest()), x),
    }


def extracted(data, size, args):
    """Features float32 (n, 4224) and labels of all pictures, and how many each split has; stored."""
    folder, dataset = args.out / f"{Path(data).name}-{size}", load_dataset(data)
    command = ("extract_features.py", "--data", data, "--image-size", size, "--layers", "conv")
    command += ("--weights", args.weights, "--precision", args.precision, "--out", folder)
    subprocess.run([sys.executable, ROOT / command[0], *map(str, command[1:])], check=True)
    loaded = [features.load_features(folder, dataset, split)[:2] for split in SPLITS]
    x, y = (np.concatenate(part) for part in zip(*loaded))
    return x, y, [len(labels) for _, labels in loaded]


def scaled(data, size, args):
    """The same features of pictures scaled to 0..1, without VGG16's own preprocessing."""
    dataset = load_images(load_dataset(data), SPLITS, size)
    model = features.build_network(
        features.FeatureSpec(args.weights, "conv", size, 0, args.precision)
    )
    pooled, _ = common.feature_extractor(model, common.convolutions(model))
    images = keras.Input((size, size, 3))
    # what preprocessing turns into RGB of 0..1: it reverses the channels and subtracts the mean
    undone = keras.layers.Rescaling(1 / 255, offset=common.IMAGENET_MEAN[::-1], dtype="float32")
    pooled = keras.Model(images, pooled(undone(keras.ops.flip(images, axis=-1))))
    found = []
    for split in SPLITS:
        images = dataset.splits[split].images
        path = args.out / f"{Path(data).name}-{size}-scaled-{split}.npy"
        file = features.output_file(pooled, len(images), path, f"{split} features, scaled")
        found.append(features.cache_outputs(pooled, images, file, 32))
    return np.concatenate(found)


def print_rows(name, rows, y):
    """Cross-validated accuracy of each row, {title: (classifier, features)}, beside the first one's."""
    folds, right = StratifiedKFold(FOLDS, shuffle=True, random_state=0), {}
    for title, (classifier, x) in rows.items():
        predicted = cross_val_predict(classifier, x, y, cv=folds)
        right[title] = (predicted == y).astype(float)
        gain = 100 * (right[title] - next(iter(right.values())))
        error = gain.std(ddof=1) / len(y) ** 0.5
        accuracies = 100 * accuracy_score(y, predicted), 100 * balanced_accuracy_score(y, predicted)
        shown = f"{accuracies[0]:6.1f}  balanced {accuracies[1]:5.1f}  {gain.mean():+5.1f} +- {error:.1f}"
        print(f"  {name:<12}{title:<34}{shown}", flush=True)


def print_counts(name, x, y, counts):
    """Test accuracy of the linear classifier by the number of training pictures of each class."""
    for count in (*COUNTS, 0):
        found, test = [], counts[0] + counts[1]  # its first row: before it come train and val
        for draw in range(DRAWS if count else 1):
            rows = few_of_each(y[: counts[0]], count, draw)
            found.append(100 * linear().fit(x[rows], y[rows]).score(x[test:], y[test:]))
        spread = f" +- {np.std(found, ddof=1) / len(found) ** 0.5:.1f}" if len(found) > 1 else ""
        print(
            f"  {name:<12}linear, {count or 'all'} a class: {np.mean(found):.1f}{spread}",
            flush=True,
        )


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--data", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224], help="default: 224")
    parser.add_argument("--scaled", action="store_true", help="the 0..1 pictures as well")
    parser.add_argument("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    parser.add_argument("--precision", default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, default=Path("features/frozen"), help="default: %(default)s"
    )
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    for data in args.data:
        name, found = Path(data).name, [extracted(data, size, args) for size in args.sizes]
        (x, y, counts), first = found[0], args.sizes[0]
        rows = {f"linear, {first}": (linear(), x)} | compared_rows(x)
        for size, (other, *_) in zip(args.sizes[1:], found[1:]):
            both = np.concatenate([x, other], axis=1)
            rows |= {
                f"linear, {size}": (linear(), other),
                f"linear, {first} and {size}": (linear(), both),
            }
        if args.scaled:
            rows["linear, 0..1"] = linear(), scaled(data, first, args)
        print_rows(name, rows, y)
        print_rows(name, study_rows(args.out / f"{name}-{first}", x), y)
        print_counts(name, x, y, counts)


if __name__ == "__main__":
    main()
