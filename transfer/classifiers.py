"""Classifiers on features: random forests and linear ones, fitted, stored without pickle, loaded."""

import copy
import time
import warnings
from operator import itemgetter
from pathlib import Path

import numpy as np
import skops.io
from scipy.optimize import minimize_scalar
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from common import discretize, signed_square_root
from transfer.console import BadInput, percent, progress
from transfer.features import select_columns
from transfer.files import read_csv, read_json, write_atomically, write_csv, write_json
from transfer.plots import plot_confusion

TEMPERATURE_BOUNDS = (
    -2,
    3,
)  # of a softmax, as a logarithm: it would be infinite where val has no mistake
# of a forest that grows: "balanced" would be other weights if it were fitted on other labels
warnings.filterwarnings("ignore", message="class_weight presets")


def fit_all(plan, dataset, stored, columns, run, seed):
    """Fit every setting of `plan`, each recorded as it ends; returns their rows of metrics. plan: {(layers,
    discretize): settings as `fit_classifiers` takes them}. stored: {"train": (features, labels), "val":
    ...} of all layers, whose `columns` features.json lists. Writes the best one's pipeline and confusion
    matrix of val (PNG, CSV). RUN/classifiers.json says which are finished: a rerun fits the others."""
    state = run / "classifiers.json"
    rows = read_json(state) if state.exists() else []
    for (layers, discretized), planned in plan.items():
        chosen = {"layers": layers, "discretize": discretized}
        done = [
            {key: row[key] for key in planned[0]} for row in rows if chosen.items() <= row.items()
        ]
        settings = [setting for setting in planned if setting not in done]
        if settings and len(plan) > 1:
            print(f"{layers}{', discretized' * discretized}: {len(settings)} to fit", flush=True)
        train, val = ((select_columns(x, columns, layers), y) for x, y in stored.values())
        for pipeline, row, predicted in fit_classifiers(settings, train, val, discretized, seed):
            row = {"layers": layers, **row}
            if best_row([*rows, row]) is row:
                write_atomically(run / "pipeline.skops", skops.io.dumps(pipeline))
                counts = confusion_matrix(val[1], predicted, labels=range(len(dataset.labels)))
                header = ("true", *dataset.labels, "dataset")
                lines = [
                    (label, *of, dataset.name) for label, of in zip(dataset.labels, counts.tolist())
                ]
                write_csv(run / "confusion_val.csv", [dict(zip(header, line)) for line in lines])
            rows.append(row)
            write_json(state, rows)  # last: a classifier that it does not list is fitted again
    counts = [
        row[1:-1]
        for row in read_csv(run / "confusion_val.csv", "delete this run and fit again")[1:]
    ]
    title = f"{run.name}, validation: {percent(best_row(rows)['val_accuracy'])}"
    plot_confusion(
        np.array(counts, int), dataset.labels, run / "confusion_val.png", title, dataset.notice
    )
    return rows


def best_row(rows):
    """The row of the best val_accuracy: of equals the more regularised linear one, or the larger forest."""
    return max(reversed(rows), key=itemgetter("val_accuracy"))


def fit_classifiers(settings, train, val, discretized, seed):
    """Fit a classifier for each setting; yields (Pipeline, row of metrics, val predictions). settings:
    dicts of scikit-learn's names, all with "alpha" (`fit_linear` on standardised square roots) or all with
    "min_samples_leaf" and "n_estimators" (a forest), those of one leaf together and by their number of
    trees: larger forests of a seed grow from smaller ones. train, val: (features float32 (n, n_features),
    labels (n,)). discretized: the full-network embedding comes first. StandardScaler makes a feature that
    never varies 0 everywhere."""
    (x, y), (x_val, y_val), classifier = train, val, None
    name = "linear" if settings and "alpha" in settings[0] else "forest"
    steps = [("square root", FunctionTransformer(signed_square_root))] * (name == "linear")
    steps += [("standardise", StandardScaler())] * (discretized or name == "linear")
    steps += [("discretize", FunctionTransformer(discretize))] * discretized
    for _, transformer in steps if settings else ():
        x = transformer.fit_transform(x)
        x_val = transformer.transform(x_val)
    for setting in progress(settings, "fitting", len(settings), " classifiers"):
        start = time.perf_counter()
        if name == "linear":
            fitted = fit_linear(setting, (x, y), (x_val, y_val))
        else:
            if classifier is None or classifier.min_samples_leaf != setting["min_samples_leaf"]:
                classifier = RandomForestClassifier(n_jobs=-1, random_state=seed, warm_start=True)
            fitted = copy.copy(classifier.set_params(**setting).fit(x, y))
            # one thread adds up the trees' votes in one order: the same figures at every run
            fitted.set_params(warm_start=False, n_jobs=1).estimators_ = list(classifier.estimators_)
        size, seconds = f"{len(x)} x {x.shape[1]} features", time.perf_counter() - start
        print(f"Fitted {setting} on {size} in {seconds:.1f} s.", flush=True)
        row = {"discretize": discretized, **setting, "n_features": x.shape[1]}
        predicted = fitted.predict(x_val)
        row["accuracy"] = float(np.mean(fitted.predict(x) == y))
        row["val_accuracy"] = float(np.mean(predicted == y_val))
        yield Pipeline([*steps, (name, fitted)]), row, predicted


def fit_linear(setting, train, val):
    """A LogisticRegression with the coefficients of ridge regression, which are better than its own on
    photographs and found in a second (docs/better.md). setting: of RidgeClassifier. Its scores become
    probabilities by the one factor that makes val's labels most probable (Guo et al. 2017)."""
    ridge = RidgeClassifier(**setting).fit(*train)
    known = np.isin(val[1], ridge.classes_)
    x, y = val[0][known], val[1][known]

    def softmax(logarithm):
        fitted, factor = LogisticRegression(), np.exp(logarithm)
        fitted.classes_, fitted.coef_ = ridge.classes_, factor * np.atleast_2d(ridge.coef_)
        fitted.intercept_ = factor * ridge.intercept_
        return fitted

    def loss(logarithm):
        return log_loss(y, softmax(logarithm).predict_proba(x), labels=ridge.classes_)

    return softmax(minimize_scalar(loss, bounds=TEMPERATURE_BOUNDS).x)


TRUSTED_TYPES = {
    "common.discretize",
    "common.signed_square_root",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.tree._tree.Tree",
}


def load_pipeline(path):
    """A pipeline that `fit_all` wrote; BadInput where it is damaged or holds other types, as pickle can."""
    try:
        content = Path(path).read_bytes()
        unknown = set(skops.io.get_untrusted_types(data=content)) - TRUSTED_TYPES
        if not unknown:
            return skops.io.loads(content, trusted=sorted(TRUSTED_TYPES))
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(f"{path} is not a whole pipeline ({error}); fit it again.") from None
    raise BadInput(f"{path} holds types that are not a forest's ({min(unknown)}); fit it again.")


def pipeline_probabilities(pipeline, features, classes):
    """Probabilities float32 (n, classes) of a fitted pipeline, 0 for classes that it has not seen."""
    probabilities = np.zeros((len(features), classes), "float32")
    probabilities[:, pipeline.classes_] = pipeline.predict_proba(features)
    return probabilities
