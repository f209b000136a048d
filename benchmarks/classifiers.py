"""Forests and linear classifiers of several libraries on the same stored features of real photographs.

    python extract_features.py --data DIR --model data/vgg16-start.h5 --image-size 64
    python benchmarks/classifiers.py --data DIR --features features/NAME

Forests: 50 trees, leaf 2, on all cores. scikit-learn's are the study's (`random_forest.py`); beside it
extremely randomised trees, the same forest on features of 256 quantiles, and with --libraries those of
scikit-learn-intelex, LightGBM and XGBoost, where they are installed. Linear ones: what `--classifier
linear` fits, on standardised features and on their full-network embedding, and scikit-learn's others. All
in turn, for each seed; accuracy on the test split in percent, seconds of `fit` (median).
"""

import argparse
import time
import warnings

import numpy as np
from measure import describe_machine

SIZE = {"n_estimators": 50, "min_samples_leaf": 2, "n_jobs": -1}


def forests(seed, libraries):
    """{name: classifier} of forests of 50 trees and leaf 2: scikit-learn's, and those of `libraries`."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    found = {
        "scikit-learn": RandomForestClassifier(**SIZE, random_state=seed),
        "scikit-learn, 256 quantiles": RandomForestClassifier(**SIZE, random_state=seed),
        "extremely randomised trees": ExtraTreesClassifier(**SIZE, random_state=seed),
    }
    if "sklearnex" in libraries:
        from sklearnex.ensemble import RandomForestClassifier as Intel

        found["scikit-learn-intelex"] = Intel(**SIZE, random_state=seed)
    if "lightgbm" in libraries:
        from lightgbm import LGBMClassifier

        sampled = {"subsample": 0.632, "subsample_freq": 1, "feature_fraction_bynode": 0.015}
        found["LightGBM, rf"] = LGBMClassifier(
            boosting_type="rf", num_leaves=1024, min_child_samples=2, verbose=-1, n_estimators=50,
            random_state=seed, **sampled,
        )  # fmt: skip
    if "xgboost" in libraries:
        from xgboost import XGBRFClassifier

        found["XGBoost, rf"] = XGBRFClassifier(
            n_estimators=50, max_depth=20, colsample_bynode=0.015, random_state=seed, tree_method="hist"
        )
    return found


def linear_classifiers():
    """{name: classifier}; what `--classifier linear` fits for one C, and others."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.svm import LinearSVC

    from transfer.classifiers import LINEAR_ITERATIONS, LINEAR_TOLERANCE

    limits = {"max_iter": LINEAR_ITERATIONS, "tol": LINEAR_TOLERANCE}
    found = {f"logistic, C {c:g}": LogisticRegression(C=c, **limits) for c in (0.01, 0.1)}
    return found | {
        "linear SVM, C 0.001": LinearSVC(C=1e-3),
        "ridge, alpha 1000": RidgeClassifier(alpha=1e3),
    }


def quantised(features, by):
    """`features` as the numbers of their quantiles in `by`, 0 to 255, each column for itself."""
    edges = np.quantile(by, np.linspace(0, 1, 257)[1:-1], axis=0).astype("float32")
    columns = [np.searchsorted(edge, column) for edge, column in zip(edges.T, features.T)]
    return np.stack(columns, axis=1).astype("float32")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    parser.add_argument("--forests", action="store_true", help="leave the linear ones out")
    parser.add_argument(
        "--libraries", nargs="*", default=(), choices=("sklearnex", "lightgbm", "xgboost"), help="these too"
    )
    args = parser.parse_args()

    from sklearn.pipeline import Pipeline
    from transfer.dataset import load_dataset

    from transfer.classifiers import embedding
    from transfer.features import load_features

    warnings.filterwarnings("ignore")
    dataset = load_dataset(args.data)
    (x, y, _), (x_test, y_test, _) = (
        load_features(args.features, dataset, split) for split in ("train", "test")
    )
    print(f"{describe_machine()}\n{dataset.name}: {len(x)} x {x.shape[1]} features", flush=True)
    x, x_test = np.array(x), np.array(x_test)
    inputs = {"256 quantiles": (quantised(x, x), quantised(x_test, x))}
    for discretize, name in ((False, "standardised"), (True, "embedding")):
        steps = Pipeline(embedding(discretize, standardise=True)).fit(x)
        inputs[name] = steps.transform(x), steps.transform(x_test)
    found = {}
    for seed in args.seeds:
        tried = {
            (name, "256 quantiles" if "256" in name else "as they are"): c
            for name, c in forests(seed, args.libraries).items()
        }
        if seed == args.seeds[0] and not args.forests:  # these draw nothing
            for kind in ("standardised", "embedding"):
                tried |= {(name, kind): c for name, c in linear_classifiers().items()}
        for (name, kind), classifier in tried.items():
            train, test = inputs.get(kind, (x, x_test))
            start = time.perf_counter()
            classifier.fit(train, y)
            seconds = time.perf_counter() - start
            accuracy = 100 * np.mean(np.asarray(classifier.predict(test)) == y_test)
            found.setdefault((name, kind), []).append((accuracy, seconds))
            print(f"  seed {seed}: {accuracy:.2f}  {seconds:.1f} s  {name}, {kind}", flush=True)
    print("\nclassifier, features, test accuracy (mean, each), seconds")
    for (name, kind), rows in found.items():
        accuracies, seconds = zip(*rows)
        each = " ".join(f"{a:.2f}" for a in accuracies)
        print(f"  {name:28}{kind:14}{np.mean(accuracies):6.2f} ({each})  {np.median(seconds):.1f}")


if __name__ == "__main__":
    main()
