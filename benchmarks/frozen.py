"""What frozen features are worth, by the product's five-fold cross-validation over all pictures.

    python benchmarks/vgg16_imagenet.py
    python benchmarks/frozen.py --data ../shared/real/rijks ../shared/real/trashnet --sizes 224 320
    python benchmarks/frozen.py --data DIR --promises      instead: suspect labels, promises, splits

Forests and linear classifiers on the means of the 13 convolutions, each on the same folds. A
difference is to the first row, picture by picture, in points with its standard error. Then the
study's forests; then the linear classifier fitted on so many training pictures of each class (three
random choices), on the test split.

--promises: of labels changed at random how many are found among the suspects (beside cleanlab's
ranking of the same probabilities, where that is installed); how often --accept misses what it
promised of new pictures, and how many of them it answers; how far tests of 20% lie from the figure
of the folds.
"""

import contextlib
from pathlib import Path

import numpy as np
from measure import describe_machine, few_of_each
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import common
from transfer import features
from transfer.classifiers import new_pipeline
from transfer.data import load_dataset
from transfer.flags import script_parser
from transfer.folds import assign_folds, cross_validate, fit_best
from transfer.stats import in_percent, promised_confidence
from transfer.study import SPLITS

FOLDS = 5
COUNTS = (10, 30, 100)  # training pictures of each class
CHOICES = 3  # of so many pictures, and of labels to change
CHANGED = 0.05  # of the labels
LABELLED = (160, 320, 640, 960)  # pictures that a promise rests on
SHARES = (0.8, 0.9, 0.95)
DRAWS = 50  # of so many pictures
TESTS = 20
BATCH_SIZE = 32


def linear(**setting):
    """The product's linear classifier at one alpha."""
    return new_pipeline({"alpha": 1000.0, **setting}, False, 0)


def forest(leaf=2, discretized=False, **setting):
    """A forest of the study, its best one where nothing else is said."""
    setting = {"min_samples_leaf": leaf, "n_estimators": 50, **setting}
    return new_pipeline(setting, discretized, 0)


def without_roots(*before):
    """The linear classifier on standardised features, `before` it something else."""
    return make_pipeline(StandardScaler(), *before, RidgeClassifier(1000.0))


def logistic():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


def answers(pipeline, x, y, folds):
    """What `cross_validate` gives, at the penalty of the pipeline."""
    return cross_validate(pipeline, [pipeline[-1].get_params()], x, y, folds)


def load_features(dataset, size, args, layers="conv"):
    """Features and labels of all pictures of a dataset, extracted where they are not stored.

    Returns (float32 (n, n_features), {split: of `features.load_features`}): the splits one after
    the other.
    """
    spec = features.FeatureSpec(args.weights, "conv", size, 0, args.precision)
    options = features.ExtractionOptions(BATCH_SIZE)
    folder = features.extract_features(spec, dataset, SPLITS, options)
    stored = {split: features.load_features(folder, dataset, split, layers) for split in SPLITS}
    return np.concatenate([part for part, *_ in stored.values()]), stored


def compared_classifiers(dataset, args):
    """The product's linear classifier and others: {title: (classifier, features)}."""
    first, *others = args.sizes
    x, _ = load_features(dataset, first, args)
    rows = {
        f"linear, {first}": (linear(), x),
        "linear, alpha 300": (linear(alpha=300.0), x),
        "linear, without square roots": (without_roots(), x),
        "linear, discretized": (without_roots(FunctionTransformer(common.discretize)), x),
        "linear, --balanced": (linear(class_weight="balanced"), x),
        "logistic regression": (logistic(), x),
        "forest": (forest(), x),
    }
    for size in others:
        other, _ = load_features(dataset, size, args)
        rows[f"linear, {first} and {size}"] = (linear(), np.concatenate([x, other], axis=1))
    return rows


def study_forests(dataset, args):
    """The study's forests on the first size: {title: (classifier, features)}."""
    size = args.sizes[0]
    x, _ = load_features(dataset, size, args)
    last, _ = load_features(dataset, size, args, "last")
    block5, _ = load_features(dataset, size, args, "block5_conv3")
    return {
        "forest, leaf 7, all": (forest(7), x),
        "forest, leaf 7, last": (forest(7), last),
        "forest, leaf 7, block5_conv3": (forest(7), block5),
        "forest, leaf 2, all": (forest(), x),
        "the same, discretized": (forest(discretized=True), x),
    }


def print_cross_validated(name, rows, y, folds):
    """Cross-validated accuracy of each row, {title: (classifier, features)}, beside the first's."""
    first = None
    for title, (classifier, x) in rows.items():
        predicted = answers(classifier, x, y, folds).argmax(axis=1)
        right = (predicted == y).astype(float)
        first = right if first is None else first
        accuracy = 100 * accuracy_score(y, predicted)
        balanced = 100 * balanced_accuracy_score(y, predicted)
        print(f"  {name:<12}{title:<34}{accuracy:6.1f}  balanced {balanced:5.1f}", end="")
        print(f"  {in_percent(right - first, '+')}", flush=True)


def print_by_count(name, stored):
    """Test accuracy of the linear classifier by the number of training pictures of each class.
    stored: as of `load_features`."""
    x, train, _ = stored["train"]
    for count in (*COUNTS, 0):
        accuracies = []
        for choice in range(CHOICES if count else 1):
            rows = few_of_each(train, count, choice)
            fitted = linear().fit(x[rows], train[rows])
            accuracies.append(fitted.score(*stored["test"][:2]))
        print(f"  {name:<12}linear, {count or 'all'} a class: {in_percent(accuracies)}", flush=True)


def print_suspects(name, x, y, folds):
    """Of labels changed at random, what share is found among the first as many suspects; of the
    first 24 suspects, what share was changed."""
    for seed in range(CHOICES):
        rng = np.random.default_rng(seed)
        changed = rng.permutation(len(y))[: round(CHANGED * len(y))]
        given = y.copy()
        given[changed] += rng.integers(1, y.max() + 1, len(changed))
        given %= y.max() + 1

        found = answers(linear(), x, given, folds)
        orders = {"suspects": found[np.arange(len(y)), given].argsort()}
        with contextlib.suppress(ImportError):
            from cleanlab.filter import find_label_issues

            by = {"return_indices_ranked_by": "self_confidence"}
            orders["cleanlab"] = find_label_issues(given, found, **by)
        for title, order in orders.items():
            for count in (len(changed), 24):
                share = np.isin(order[:count], changed).sum() / count
                print(f"  {name:<12}seed {seed}, {title}: {share:.0%} of {count}", flush=True)


def print_promises(name, x, y):
    """Random pictures, answered in folds and then trained on: how many of the others are answered,
    and in how many draws fewer of these are right than was promised."""
    folds = np.arange(max(LABELLED)) % FOLDS
    for count in LABELLED:
        found = []
        draws = StratifiedShuffleSplit(DRAWS, train_size=count, random_state=0)
        for rows, others in draws.split(x, y):
            rows = rows[y[rows].argsort()]  # so that the folds have all classes alike
            drawn = (x[rows], y[rows], folds[:count])
            unseen = answers(linear(), *drawn)
            kept, _ = fit_best(linear(), [{"alpha": 1000.0}], *drawn)
            new = kept.predict_proba(x[others])
            right = new.argmax(axis=1) == y[others]
            for share in SHARES:
                correct = unseen.argmax(axis=1) == drawn[1]
                least = promised_confidence(unseen.max(axis=1), correct, share)
                given = new.max(axis=1) >= least
                found.append((given.mean(), given.any() and right[given].mean() < share))

        means = np.reshape(found, (DRAWS, len(SHARES), 2)).mean(axis=0)
        for share, (answered, missed) in zip(SHARES, means):
            print(f"  {name:<12}{count} pictures, --accept {share}: ", end="")
            print(f"answers {answered:.0%}, missed in {missed:.0%} of draws", flush=True)


def print_splits(name, x, y):
    """Accuracy on random tests of 20% of the pictures, with 70% to train on."""
    splits = StratifiedShuffleSplit(TESTS, train_size=0.7, test_size=0.2, random_state=0)
    tests = 100 * cross_val_score(linear(), x, y, cv=splits)
    print(f"  {name:<12}tests of 20%: {tests.mean():.1f} +- {tests.std():.1f} each, ", end="")
    print(f"{tests.min():.1f} to {tests.max():.1f}", flush=True)


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="DIR", help="folders of pictures")
    add("--sizes", type=int, nargs="+", default=[224], help="pixels a side (default: 224)")
    add("--promises", action="store_true", help="suspect labels, promises and splits instead")
    add("--weights", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    add("--precision", default="bfloat16", help="default: %(default)s")
    args = parser.parse_args()

    print(describe_machine(), flush=True)
    for data in args.data:
        name = Path(data).name
        dataset = load_dataset(data)
        x, stored = load_features(dataset, args.sizes[0], args)
        y = np.concatenate([labels for _, labels, _ in stored.values()])
        folds = assign_folds(dataset, stored, FOLDS, 0)
        if args.promises:
            print_splits(name, x, y)
            print_suspects(name, x, y, folds)
            print_promises(name, x, y)
        else:
            print_cross_validated(name, compared_classifiers(dataset, args), y, folds)
            print_cross_validated(name, study_forests(dataset, args), y, folds)
            print_by_count(name, stored)


if __name__ == "__main__":
    main()
