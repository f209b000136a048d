"""Classifiers on features, forests and linear ones: fitted, stored without pickle, loaded."""

from operator import itemgetter

import numpy as np
import skops.io
from scipy.optimize import minimize_scalar
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common import discretize, signed_square_root
from transfer.console import BadInput, percent
from transfer.features import select_columns
from transfer.files import read_json, write_atomically, write_csv, write_json
from transfer.plots import plot_confusion

# Of -log(temperature): without bounds it would grow for ever where val has no mistake.
TEMPERATURE_BOUNDS = (-2, 3)
# What a pipeline holds beside scikit-learn's own classes.
TRUSTED_TYPES = (
    "common.discretize",
    "common.signed_square_root",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.tree._tree.Tree",
)


def fit_all(plan, dataset, stored, columns, run, seed):
    """Fit every setting of `plan`; returns their rows of metrics.

    plan: [(layers, discretize, setting as `fit_classifier` takes it)]. stored: {"train":
    (features, labels), "val": ...} of all layers, whose `columns` features.json lists. Writes the
    best one's pipeline and confusion matrix of val (CSV, PNG) into the folder `run`.
    classifiers.json there lists those that are finished: the same plan again fits the others.
    """
    state = run / "classifiers.json"
    rows = read_json(state) if state.exists() else []

    for layers, discretized, setting in plan[len(rows) :]:
        # said before it begins, as a large forest takes minutes
        chosen = {"layers": layers, "discretize": discretized, **setting}
        print(f"Fitting {len(rows) + 1} of {len(plan)}, {chosen}", end="", flush=True)
        train, val = ((select_columns(x, columns, layers), y) for x, y in stored.values())
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
    `best`. val: (features, labels), as `fit_all` takes it."""
    x, y = val
    x = select_columns(x, columns, best["layers"])
    counts = confusion_matrix(y, load_pipeline(run / "pipeline.skops").predict(x))

    labels = dataset.labels
    rows = [
        {"true": label, **dict(zip(labels, row)), "dataset": dataset.name}
        for label, row in zip(labels, counts.tolist())
    ]
    write_csv(run / "confusion_val.csv", rows)
    title = f"{run.name}, validation: {percent(best['val_accuracy'])}"
    plot_confusion(counts, labels, run / "confusion_val.png", title, dataset.notice)


def fit_classifier(setting, train, val, discretized, seed):
    """Fit a pipeline; returns (Pipeline, its figures: a dict with n_features, accuracy and
    val_accuracy).

    setting: a dict of scikit-learn's names, with "alpha" (`fit_linear`) or with "min_samples_leaf"
    and "n_estimators" (a random forest). train, val: (features float32 (n, n_features), labels int
    (n,)); of val nothing is learned but a linear classifier's temperature. discretized: the
    full-network embedding comes before the forest.
    """
    x, y = train
    x_val, y_val = val
    linear = "alpha" in setting

    # what comes before the classifier
    scaler = StandardScaler()  # 0 for a feature that never varies in training
    transformers = []
    if linear:
        transformers = [FunctionTransformer(signed_square_root), scaler]
    elif discretized:
        transformers = [scaler, FunctionTransformer(discretize)]
    for transformer in transformers:
        x = transformer.fit_transform(x)
        x_val = transformer.transform(x_val)

    if linear:
        classifier = fit_linear(setting, x, y, x_val, y_val)
    else:
        forest = RandomForestClassifier(**setting, random_state=seed, n_jobs=-1).fit(x, y)
        # one thread adds up the trees' votes in one order: the same figures at every run
        classifier = forest.set_params(n_jobs=1)

    figures = {
        "n_features": x.shape[1],
        "accuracy": classifier.score(x, y),
        "val_accuracy": classifier.score(x_val, y_val),
    }
    return make_pipeline(*transformers, classifier), figures


def fit_linear(setting, x, y, x_val, y_val):
    """A linear classifier, fitted on the features x (n, n_features) and their labels y (n,).

    It is a LogisticRegression with the coefficients of ridge regression (setting: of scikit-learn's
    RidgeClassifier), which are better than its own on photographs and found in a second
    (docs/better.md). Its scores become probabilities by temperature scaling (Guo et al. 2017): they
    are divided by the one temperature that makes the labels y_val of x_val most probable.
    """
    ridge = RidgeClassifier(**setting).fit(x, y)

    def scaled(logarithm):
        inverse_temperature = np.exp(logarithm)
        softmax = LogisticRegression()
        softmax.classes_ = ridge.classes_
        softmax.coef_ = inverse_temperature * np.atleast_2d(ridge.coef_)
        softmax.intercept_ = inverse_temperature * ridge.intercept_
        return softmax

    def loss(logarithm):
        return log_loss(y_val, scaled(logarithm).predict_proba(x_val))

    return scaled(minimize_scalar(loss, bounds=TEMPERATURE_BOUNDS).x)


def load_pipeline(path):
    """A pipeline that `fit_all` wrote; BadInput where it is damaged or holds other types."""
    try:
        return skops.io.load(path, trusted=TRUSTED_TYPES)
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(
            f"{path} is damaged or not a pipeline of these scripts ({error}); "
            "delete its folder and run random_forest.py again."
        ) from None
