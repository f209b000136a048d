"""Linear classifiers and forests on the same stored features, of one's own or TrashNet's.

    python extract_features.py --data ../shared/real/trashnet --model runs/pretrained-64
    python benchmarks/linear.py --data ../shared/real/trashnet --features features/NAME

Each on standardised features and on their full-network embedding: the logistic regression that
`random_forest.py --classifier linear` fits, for several C, beside scikit-learn's other linear classifiers
and the study's forest. Accuracy on val and test in percent, seconds of `fit`, iterations.
"""

import argparse
import time
import warnings

import numpy as np
from measure import describe_machine

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", required=True)
    args = parser.parse_args()
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.svm import LinearSVC

    from transfer.classifiers import LINEAR_ITERATIONS, LINEAR_TOLERANCE, embedding
    from transfer.dataset import load_dataset
    from transfer.features import load_features

    warnings.filterwarnings("ignore", category=FutureWarning)
    dataset = load_dataset(args.data)
    stored = {split: load_features(args.features, dataset, split)[:2] for split in dataset.splits}
    print(describe_machine())
    print(f"{dataset.name}: {len(stored['train'][0])} x {stored['train'][0].shape[1]} features\n")
    limits = {"max_iter": LINEAR_ITERATIONS, "tol": LINEAR_TOLERANCE}
    classifiers = {f"logistic regression, C {c:g}": LogisticRegression(C=c, **limits) for c in C_VALUES}
    classifiers["linear SVM (liblinear), C 0.001"] = LinearSVC(C=1e-3)
    classifiers["ridge (least squares), alpha 1000"] = RidgeClassifier(alpha=1e3)
    forest = RandomForestClassifier(50, min_samples_leaf=2, n_jobs=-1, random_state=0)
    classifiers["forest, 50 trees, leaf 2"] = forest
    for discretize in (False, True):
        steps = Pipeline(embedding(discretize, standardise=True)).fit(stored["train"][0])
        x = {split: steps.transform(features) for split, (features, _) in stored.items()}
        for name, classifier in classifiers.items():
            start = time.perf_counter()
            classifier.fit(x["train"], stored["train"][1])
            seconds = time.perf_counter() - start
            scores = [100 * classifier.score(x[split], stored[split][1]) for split in ("val", "test")]
            iterations = (
                np.max(classifier.n_iter_) if getattr(classifier, "n_iter_", None) is not None else "-"
            )
            kind = "embedding" if discretize else "standardised"
            print(
                f"  {kind:13}{name:36}val {scores[0]:.2f}  test {scores[1]:.2f}  "
                f"{seconds:6.1f} s  {iterations} iterations",
                flush=True,
            )


if __name__ == "__main__":
    main()
