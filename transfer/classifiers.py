"""Classifiers on features: random forests and linear ones, fitted, stored without pickle, loaded."""

import copy
import time
from pathlib import Path

import numpy as np

from common import discretise
from transfer.files import check_file, replace_with_checksum
from transfer.screen import BadInput, progress

# --classifier: scikit-learn's class. Extremely randomised trees (Geurts et al. 2006) draw their thresholds
# instead of searching them: less than half the time at the same accuracy (benchmarks/README.md).
FORESTS = {"forest": "RandomForestClassifier", "extra-trees": "ExtraTreesClassifier"}
LINEAR_ITERATIONS, LINEAR_TOLERANCE = 500, 1e-4


def embedding(discretize, standardise=False):
    """Steps of the full-network embedding for a Pipeline; none, or its first, where not `discretize`.

    StandardScaler keeps the training split's statistics, and divides a feature that never varies
    by 1: such a feature becomes 0 everywhere.
    """
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    if not discretize and not standardise:
        return []
    steps = [("standardise", StandardScaler())]
    return steps + [("discretise", FunctionTransformer(discretise))] * discretize


def fit_classifiers(settings, train, val, discretize, seed):
    """Fit a classifier for each setting; yields (Pipeline, row of metrics, val predictions, seconds).

    settings: dicts, all with "C" (the linear classifier) or all with "min_samples_leaf" and
    "n_estimators" (a forest; "classifier" names one of FORESTS but the first), those of one leaf together
    and by their number of trees. train, val:
    (features float32 (n, n_features), labels (n,)).
    """
    from sklearn.pipeline import Pipeline

    if not settings:
        return
    name, fit = ("linear", fit_linear) if "C" in settings[0] else ("forest", fit_forests)
    steps, (x, y), (x_val, y_val) = embedding(discretize, standardise=name == "linear"), train, val
    for _, transformer in steps:
        x = transformer.fit_transform(x)
        x_val = transformer.transform(x_val)
    for setting, classifier, seconds in fit(settings, x, y, seed):
        predicted = classifier.predict(x_val)
        row = {
            "discretize": discretize,
            **setting,
            "n_features": x.shape[1],
            "accuracy": float(np.mean(classifier.predict(x) == y)),
            "val_accuracy": float(np.mean(predicted == y_val)),
        }
        yield Pipeline([*steps, (name, classifier)]), row, predicted, seconds


def fit_forests(settings, x, y, seed):
    """Fit a forest for each setting; yields (setting, forest, seconds).

    A forest's first 12 trees are the forest of 12 trees of the same seed, so larger ones grow from
    smaller ones (warm_start).
    """
    from sklearn import ensemble

    forest = None
    for setting in progress(settings, "fitting", len(settings), " forests"):
        if forest is None or forest.min_samples_leaf != setting["min_samples_leaf"]:
            kind = getattr(ensemble, FORESTS[setting.get("classifier", "forest")])
            forest = kind(n_jobs=-1, random_state=seed, warm_start=True)
        start = time.perf_counter()
        size = {key: setting[key] for key in ("min_samples_leaf", "n_estimators")}
        forest.set_params(**size).fit(x, y)
        seconds = time.perf_counter() - start
        # one thread adds up the trees' votes in one order: the same figures at every run
        fitted = copy.copy(forest).set_params(warm_start=False, n_jobs=1)
        fitted.estimators_ = list(forest.estimators_)
        yield setting, fitted, seconds


def fit_linear(settings, x, y, seed):
    """Fit a multinomial logistic regression for each C; yields (setting, classifier, seconds).

    Each begins where the one before ended. The solver draws nothing, so `seed` has no effect.
    """
    from sklearn.linear_model import LogisticRegression

    print(f"Fitting linear classifiers on {len(x)} x {x.shape[1]} features", flush=True)
    path = LogisticRegression(max_iter=LINEAR_ITERATIONS, tol=LINEAR_TOLERANCE, warm_start=True)
    for setting in progress(settings, "fitting", len(settings), " classifiers"):
        start = time.perf_counter()
        path.set_params(C=setting["C"]).fit(x, y)
        seconds = time.perf_counter() - start
        yield setting | {"iterations": int(path.n_iter_[0])}, copy.copy(path), seconds


# Pipelines -------------------------------------------------------------------------------

TRUSTED_TYPES = {
    "common.discretise",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.tree._tree.Tree",  # compiled and unchecked by scikit-learn: hence `check_trees`
}


def save_pipeline(path, pipeline):
    """Write a fitted scikit-learn pipeline without pickle (skops), atomically, with its checksum."""
    import skops.io

    part = Path(f"{path}.part")
    part.write_bytes(skops.io.dumps(pipeline))
    replace_with_checksum(part, path)


def load_pipeline(path):
    """A pipeline that `save_pipeline` wrote; BadInput where the file is not what its checksum was
    made of, or holds anything but a pipeline's types."""
    import skops.io

    check_file(path)
    try:
        content = Path(path).read_bytes()
        unknown = set(skops.io.get_untrusted_types(data=content)) - TRUSTED_TYPES
        if not unknown:
            pipeline = skops.io.loads(content, trusted=sorted(TRUSTED_TYPES))
            if hasattr(pipeline[-1], "estimators_"):
                check_trees(pipeline[-1])
            return pipeline
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(f"{path} is not a whole pipeline ({error}); fit it anew.") from None
    raise BadInput(f"{path} holds types that are not a forest's ({min(unknown)}); fit it anew.")


def check_trees(forest):
    """ValueError where a node of a loaded tree points to itself, back, or out of its arrays."""
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        number = np.arange(tree.node_count)
        for child in (tree.children_left, tree.children_right):
            inside = (child > number) & (child < tree.node_count)
            if not np.all(inside | (child == -1)):
                raise ValueError("a tree's node has no valid child")
        if np.any(tree.feature >= forest.n_features_in_):
            raise ValueError("a tree splits on a feature that there is not")


def pipeline_probabilities(pipeline, features, classes):
    """Probabilities float32 (n, classes) of a fitted pipeline, 0 for classes that it has not seen."""
    probabilities = np.zeros((len(features), classes), "float32")
    probabilities[:, pipeline.classes_] = pipeline.predict_proba(features)
    return probabilities
