"""What pays on frozen features, by five-fold cross-validation over all pictures of a set.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/frozen.py --data ../shared/real/rijks ../shared/real/trashnet --sizes 224 320

Forests and linear classifiers on the means of the 13 convolutions, each on the same folds. A
difference is to the first row, picture by picture, in points with its standard error. "0..1" gives
the convolutions pictures scaled to 0..1 instead of VGG16's own preprocessing. Then the study's
forests; then the linear classifier fitted on so many training pictures of each class (three random
choices), on the test split.
"""

from pathlib import Path

import numpy as np
from measure import describe_machine, few_of_each
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import common
from transfer import features
from transfer.backend import keras
from transfer.data import load_dataset
from transfer.flags import script_parser
from transfer.images import load_images
from transfer.stats import mean_and_error
from transfer.study import SPLITS

FOLDS = 5
COUNTS = (10, 30, 100)  # training pictures of each class
CHOICES = 3  # of so many pictures
BATCH_SIZE = 32


def linear(before=common.signed_square_root, alpha=1000.0, class_weight=None):
    """The product's linear classifier at one alpha; its scores are not made probabilities."""
    ridge = RidgeClassifier(alpha, class_weight=class_weight)
    return make_pipeline(FunctionTransformer(before), StandardScaler(), ridge)


def forest(leaf=2, class_weight=None):
    """A forest of the study, its best one where nothing else is said."""
    settings = {"min_samples_leaf": leaf, "class_weight": class_weight}
    return RandomForestClassifier(50, **settings, n_jobs=-1, random_state=0)


def embedding(classifier):
    """The full-network embedding, then a classifier."""
    return make_pipeline(StandardScaler(), FunctionTransformer(common.discretize), classifier)


def logistic():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


def load_features(dataset, size, args, layers="conv"):
    """Features and labels of all pictures of a dataset, extracted where they are not stored.

    Returns (float32 (n, n_features), labels (n,), {split: how many of the rows are its}): the
    splits one after the other.
    """
    spec = features.FeatureSpec(args.weights, "conv", size, 0, args.precision)
    folder = features.features_folder(spec, dataset, False)
    options = features.ExtractionOptions(BATCH_SIZE)
    features.extract_features(spec, dataset, SPLITS, folder, options)
    parts = []
    labels = []
    counts = {}
    for split in SPLITS:
        part, of_part, _ = features.load_features(folder, dataset, split, layers)
        parts.append(part)
        labels.append(of_part)
        counts[split] = len(of_part)
    return np.concatenate(parts), np.concatenate(labels), counts


def scaled_features(dataset, size, args):
    """The same features of pictures scaled to 0..1, without VGG16's own preprocessing."""
    spec = features.FeatureSpec(args.weights, "conv", size, 0, args.precision)
    model = features.build_network(spec)
    pooled, _ = common.feature_extractor(model, common.convolutions(model))

    # what preprocessing turns into RGB of 0..1: it reverses the channels and subtracts the mean
    images = keras.Input((size, size, 3))
    mean = common.IMAGENET_MEAN[::-1]
    undone = keras.layers.Rescaling(1 / 255, offset=mean, dtype="float32")
    scaled = keras.Model(images, pooled(undone(keras.ops.flip(images, axis=-1))))

    decoded = load_images(dataset, SPLITS, size)
    arrays = [decoded.splits[split].images for split in SPLITS]
    found = [scaled.predict(array, batch_size=BATCH_SIZE, verbose=0) for array in arrays]
    return np.concatenate(found)


def compared_classifiers(dataset, args):
    """The product's linear classifier and others: {title: (classifier, features)}."""
    first, *others = args.sizes
    x, _, _ = load_features(dataset, first, args)
    rows = {
        f"linear, {first}": (linear(), x),
        "linear, alpha 300": (linear(alpha=300.0), x),
        "linear, without square roots": (linear(before=None), x),
        "linear, discretized": (embedding(RidgeClassifier(1000.0)), x),
        "linear, --balanced": (linear(class_weight="balanced"), x),
        "logistic regression": (logistic(), x),
        "forest": (forest(), x),
        "forest, --balanced": (forest(class_weight="balanced"), x),
    }
    for size in others:
        other, _, _ = load_features(dataset, size, args)
        rows[f"linear, {size}"] = (linear(), other)
        rows[f"linear, {first} and {size}"] = (linear(), np.concatenate([x, other], axis=1))
    if args.scaled:
        rows["linear, 0..1"] = (linear(), scaled_features(dataset, first, args))
    return rows


def study_forests(dataset, args):
    """The study's forests on the first size: {title: (classifier, features)}."""
    size = args.sizes[0]
    x, _, _ = load_features(dataset, size, args)
    last, _, _ = load_features(dataset, size, args, "last")
    block5, _, _ = load_features(dataset, size, args, "block5_conv3")
    return {
        "forest, leaf 7, all": (forest(7), x),
        "forest, leaf 7, last": (forest(7), last),
        "forest, leaf 7, block5_conv3": (forest(7), block5),
        "forest, leaf 2, all": (forest(), x),
        "the same, discretized": (embedding(forest()), x),
    }


def print_cross_validated(name, rows, y):
    """Cross-validated accuracy of each row, {title: (classifier, features)}, beside the first's."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    first = None
    for title, (classifier, x) in rows.items():
        predicted = cross_val_predict(classifier, x, y, cv=folds)
        right = 100.0 * (predicted == y)
        first = right if first is None else first
        gain, error = mean_and_error(right - first)
        accuracy = 100 * accuracy_score(y, predicted)
        balanced = 100 * balanced_accuracy_score(y, predicted)
        print(f"  {name:<12}{title:<34}{accuracy:6.1f}  balanced {balanced:5.1f}", end="")
        print(f"  {gain:+5.1f} +- {error:.1f}", flush=True)


def print_by_count(name, x, y, counts):
    """Test accuracy of the linear classifier by the number of training pictures of each class."""
    train = y[: counts["train"]]
    test = counts["train"] + counts["val"]  # its first row
    for count in (*COUNTS, 0):
        accuracies = []
        for choice in range(CHOICES if count else 1):
            rows = few_of_each(train, count, choice)
            fitted = linear().fit(x[rows], y[rows])
            accuracies.append(100 * fitted.score(x[test:], y[test:]))
        accuracy, error = mean_and_error(accuracies)
        print(f"  {name:<12}linear, {count or 'all'} a class: {accuracy:.1f}", end="")
        print("" if error is None else f" +- {error:.1f}", flush=True)


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="DIR", help="folders of pictures")
    add("--sizes", type=int, nargs="+", default=[224], help="pixels a side (default: 224)")
    add("--scaled", action="store_true", help="the 0..1 pictures as well")
    add("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    add("--precision", default="bfloat16", help="default: %(default)s")
    args = parser.parse_args()

    print(describe_machine(), flush=True)
    for data in args.data:
        name = Path(data).name
        dataset = load_dataset(data)
        x, y, counts = load_features(dataset, args.sizes[0], args)
        print_cross_validated(name, compared_classifiers(dataset, args), y)
        print_cross_validated(name, study_forests(dataset, args), y)
        print_by_count(name, x, y, counts)


if __name__ == "__main__":
    main()
