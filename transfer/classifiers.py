"""Classifiers on features, forests and linear ones: fitted, stored without pickle, loaded."""

from operator import itemgetter

import numpy as np
import skops.io
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import gen_batches

from common import discretize, signed_square_root
from transfer.console import BadInput, percent
from transfer.features import select_columns
from transfer.files import read_json, write_atomically, write_csv, write_json
from transfer.plots import plot_confusion

# Of -log(temperature): without bounds it would grow for ever where val has no mistake.
TEMPERATURE_BOUNDS = (-2, 3)
SCALED_AT_ONCE = 4096  # pictures
# What a pipeline holds beside scikit-learn's own classes.
TRUSTED_TYPES = (
    "common.discretize",
    "common.signed_square_root",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.tree._tree.Tree",
    "transfer.classifiers.Scaler",
)


def fit_all(plan, dataset, stored, columns, run, seed):
    """Fit every setting of `plan`; returns their rows of metrics.

    plan: [(layers, discretize, setting as `new_pipeline` takes it)]. stored: {"train": (features,
    labels, files), "val": ...} of all layers, whose `columns` features.json lists. Writes the best
    one's pipeline and confusion matrix of val (CSV, PNG) into the folder `run`. classifiers.json
    there lists those that are finished: the same plan again fits the others.
    """
    state = run / "classifiers.json"
    rows = read_json(state, [])

    for layers, discretized, setting in plan[len(rows) :]:
        # said before it begins, as a large forest takes minutes
        chosen = {"layers": layers, "discretize": discretized, **setting}
        print(f"Fitting {len(rows) + 1} of {len(plan)}, {chosen}", end="", flush=True)
        train, val = ((select_columns(x, columns, layers), y) for x, y, _ in stored.values())
        pipeline, figures = fit_classifier(setting, train, val, discretized, seed)
        print(f": val {percent(figures['val_accuracy'])}")

        rows.append({**chosen, **figures})
        if best_row(rows) is rows[-1]:
            write_atomically(run / "pipeline.skops", skops.io.dumps(pipeline))
        write_json(state, rows)  # last: a classifier that it does not list is fitted again

    write_confusion(run, best_row(rows), stored["val"], columns, dataset)
    return rows


def best_row(rows):
    """The row of the best val_accuracy; of equals the last: the more regularised linear classifier,
    or the larger forest."""
    return max(reversed(rows), key=itemgetter("val_accuracy"))


def write_confusion(run, best, val, columns, dataset):
    """Write the confusion matrix of the pipeline in the folder `run`, whose row of metrics is
    `best`. val: (features, labels, files), as `fit_all` takes it."""
    x, y, _ = val
    x = select_columns(x, columns, best["layers"])
    predicted = load_pipeline(run / "pipeline.skops").predict(x)

    labels = dataset.labels
    counts = confusion_matrix(y, predicted, labels=range(len(labels)))
    answers = [f"predicted: {label}" for label in labels]  # a class may be called 'true'
    rows = [
        {"true": label, **dict(zip(answers, row)), "dataset": dataset.name}
        for label, row in zip(labels, counts.tolist())
    ]
    write_csv(run / "confusion_val.csv", rows)
    title = f"{run.name}, validation: {percent(best['val_accuracy'])}"
    plot_confusion(counts, labels, run / "confusion_val.png", title, dataset.notice)


class Scaler(StandardScaler):
    """scikit-learn's, which takes five times the memory of float32 features where it is fitted on
    all of them at once."""

    def fit(self, X, y=None, sample_weight=None):
        self._reset()
        for rows in gen_batches(len(X), SCALED_AT_ONCE):
            self.partial_fit(X[rows])
        return self


def new_pipeline(setting, discretized, seed):
    """A Pipeline that is not fitted yet.

    setting: a dict of scikit-learn's names, with "alpha" (ridge regression on the standardised
    square roots of the features) or with "min_samples_leaf" and "n_estimators" (a random forest).
    discretized: the full-network embedding comes before the forest.
    """
    # 0 for a feature that never varies in training; large arrays are changed in place
    if "alpha" in setting:
        roots = FunctionTransformer(signed_square_root)
        ridge = RidgeClassifier(**setting, copy_X=False)
        return make_pipeline(roots, Scaler(copy=False), ridge)
    forest = RandomForestClassifier(**setting, random_state=seed, n_jobs=-1)
    if discretized:
        return make_pipeline(Scaler(), FunctionTransformer(discretize), forest)
    return make_pipeline(forest)


def fit_classifier(setting, train, val, discretized, seed):
    """Fit a pipeline; returns (Pipeline, its figures: a dict with n_features, accuracy and
    val_accuracy). train, val: (features float32 (n, n_features), labels int (n,)); of val nothing
    is learned but a linear classifier's temperature. The rest: as `new_pipeline` takes it."""
    pipeline = new_pipeline(setting, discretized, seed).fit(*train)
    if "alpha" in setting:
        x, y = val
        pipeline = with_softmax(pipeline, find_factor(pipeline.decision_function(x), y))
    else:
        use_one_thread(pipeline)

    return pipeline, {
        "n_features": train[0].shape[1],
        "accuracy": pipeline.score(*train),
        "val_accuracy": pipeline.score(*val),
    }


def use_one_thread(pipeline):
    """Let a fitted forest add up its trees' votes in one order: the same figures at every run."""
    return pipeline.set_params(randomforestclassifier__n_jobs=1)


def find_factor(scores, y):
    """The factor of a ridge classifier's scores, (n, n_classes) or of two classes (n,), with which
    their softmax makes the labels y (n,) most probable: the inverse of the temperature of Guo et
    al. 2017."""

    def loss(logarithm):
        return log_loss(y, to_probabilities(scores, np.exp(logarithm)))

    return np.exp(minimize_scalar(loss, bounds=TEMPERATURE_BOUNDS).x)


def to_probabilities(scores, factor):
    """The softmax (n, n_classes) of scores, as `find_factor` takes them, times a factor."""
    if scores.ndim == 1:
        scores = np.column_stack([-scores, scores]) / 2
    return softmax(factor * scores, axis=1)


def with_softmax(pipeline, factor):
    """A fitted pipeline of ridge regression as one of a LogisticRegression with the same
    coefficients times `factor`. They are better than its own on photographs, and found in a second
    (docs/better.md)."""
    *transformers, ridge = pipeline
    classifier = LogisticRegression()
    classifier.classes_ = ridge.classes_
    classifier.coef_ = factor * np.atleast_2d(ridge.coef_)
    classifier.intercept_ = factor * ridge.intercept_
    return make_pipeline(*transformers, classifier)


def load_pipeline(path):
    """A pipeline that `fit_all` wrote; BadInput where it is damaged or holds other types."""
    try:
        return skops.io.load(path, trusted=TRUSTED_TYPES)
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(
            f"{path} is damaged or not a pipeline of these scripts ({error}); "
            "delete its folder and run random_forest.py again."
        ) from None
