"""Forests and linear classifiers: classifiers.py, random_forest.py."""

import shutil
from itertools import product

import numpy as np
import pytest
import skops.io
from conftest import only_run, read_rows
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import random_forest
from common import discretize
from transfer import classifiers
from transfer.classifiers import load_pipeline
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features
from transfer.files import read_json

LINEAR = ("--classifier", "linear")
HARMLESS = skops.io.dumps(FunctionTransformer(discretize))


@pytest.fixture
def features(workdir, stored_features):
    """The stored features, copied to where the scripts look for them."""
    return shutil.copytree(stored_features, workdir / "features" / stored_features.name)


def fit(setting, train, val, discretized=False, seed=0):
    """A fitted pipeline."""
    pipeline, _ = classifiers.fit_classifier(setting, train, val, discretized, seed)
    return pipeline


def read_counts(run, labels):
    """The confusion matrix that a run wrote."""
    rows = read_rows(run / "confusion_val.csv")
    return np.array([[row[f"predicted: {label}"] for label in labels] for row in rows], int)


def ridge(x, y, **settings):
    """scikit-learn's ridge, fitted on standardised square roots."""
    root = FunctionTransformer(np.sqrt)
    return make_pipeline(root, StandardScaler(), RidgeClassifier(**settings)).fit(x, y)


# --- what is fitted ---


def test_embedding_equals_numpys_with_the_training_statistics():
    rng = np.random.default_rng(0)
    train = rng.gamma(0.5, 30, (100, 12)).astype("float32")
    val = rng.gamma(0.7, 40, (100, 12)).astype("float32")
    train[:, 0] = 3.3  # never varies
    val[:, 0] = 3.3
    train[:, 1] = 0  # varies only later

    # what never varies says nothing, what varies only later is not hidden
    spread = train.std(axis=0)
    spread[:2] = 1
    z = (val - train.mean(axis=0)) / spread
    expected = np.select([z < -0.25, z > 0.15], [-1, 1])
    assert not expected[:, 0].any()

    # the transformers of a fitted pipeline
    y = np.arange(100) % 3
    setting = {"min_samples_leaf": 2, "n_estimators": 1}
    pipeline = fit(setting, (train, y), (val, y), discretized=True)
    np.testing.assert_array_equal(pipeline[:-1].transform(val), expected)


def test_of_equals_the_last_is_the_best():
    rows = [
        {"val_accuracy": 0.5},
        {"val_accuracy": 0.7},
        {"val_accuracy": 0.7},
        {"val_accuracy": 0.6},
    ]
    assert classifiers.best_row(rows) is rows[2]


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_classifier_is_as_certain_as_it_is_right(classes):
    # the square roots are normal, of one variance, so that a softmax can be exactly right
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=6000)
    roots = rng.normal(10, 1, size=(6000, 20))
    roots[np.arange(6000), y] += 1.5
    x = (roots**2).astype("float32")
    x[:, -5:] = rng.normal(size=(6000, 5))  # such as a network of one's own may give: below 0 too
    train, val, (x_test, y_test) = zip(np.split(x, 3), np.split(y, 3))

    pipeline = fit({"alpha": 1.0}, train, val)

    # among the least certain, the others and the most certain as many are right as they say
    probabilities = pipeline.predict_proba(x_test)
    right = probabilities.argmax(axis=1) == y_test
    certainty = probabilities.max(axis=1)
    for third in np.array_split(np.argsort(certainty), 3):
        assert abs(certainty[third].mean() - right[third].mean()) < 0.05

    # no other temperature makes the labels of val more probable
    x_val, y_val = val
    losses = []
    for factor in (1, 0.98, 1.02):
        scaled = softmax(factor * pipeline.predict_log_proba(x_val), axis=1)
        losses.append(log_loss(y_val, scaled))
    assert losses[0] == min(losses)


def test_probabilities_stay_finite_where_validation_has_no_mistake():
    x = np.repeat([[1.0, 9.0], [9.0, 1.0]], 20, axis=0)
    train = x, np.repeat([0, 1], 20)
    pipeline = fit({"alpha": 1.0}, train, train)

    # the bound of the temperature keeps them from certainty
    certainty = pipeline.predict_proba(x).max(axis=1)
    assert certainty.min() > 0.9
    assert np.isfinite(pipeline[-1].coef_).all()


@pytest.mark.parametrize("flags", [("--trees", "3"), (*LINEAR, "--alpha", "3")])
def test_balanced_is_scikit_learns(flags):
    # the flag becomes scikit-learn's setting
    args = random_forest.parse_args([*flags, "--balanced"])
    ((*_, setting),) = random_forest.plan_settings(args)
    assert setting["class_weight"] == "balanced"

    # on classes of unequal size
    x = np.random.default_rng(0).random((80, 6)).astype("float32")
    y = np.repeat([0, 1, 2], [60, 15, 5])
    found = fit(setting, (x, y), (x, y), seed=3)

    # the same answers
    if args.classifier == "linear":
        alone = ridge(x, y, **setting)
    else:
        alone = RandomForestClassifier(random_state=3, **setting).fit(x, y)
    np.testing.assert_array_equal(found.predict(x), alone.predict(x))


# --- what a run leaves ---


def test_a_forest_leaves_its_record(tiny, workdir, features, script, capsys):
    # the notice comes first and last
    script("random_forest", "--data", tiny, "--leaf", "2", "--trees", "12")
    assert capsys.readouterr().out.count("TINY DATASET of the tests.") == 2
    run = only_run(workdir)

    # the figures are scikit-learn's
    dataset = load_dataset(tiny)
    x, y, _ = load_features(features, dataset, "train")
    x_val, y_val, _ = load_features(features, dataset, "val")
    alone = RandomForestClassifier(12, min_samples_leaf=2, random_state=0).fit(x, y)
    row = {
        "layers": "all",
        "discretize": False,
        "min_samples_leaf": 2,
        "n_estimators": 12,
        "n_features": x.shape[1],
        "accuracy": alone.score(x, y),
        "val_accuracy": alone.score(x_val, y_val),
    }
    assert read_json(run / "metrics.json") == {
        "dataset": "tiny",
        "notice": "TINY DATASET of the tests.",
        **row,
        "classifiers": [row],
    }

    # so is the pipeline
    predicted = load_pipeline(run / "pipeline.skops").predict(x_val)
    np.testing.assert_array_equal(predicted, alone.predict(x_val))

    # the confusion matrix counts what it predicts
    counts = read_counts(run, dataset.labels)
    np.testing.assert_array_equal(counts, confusion_matrix(y_val, predicted))
    assert (run / "confusion_val.png").exists()

    # config.json has the settings as one would type them
    arguments = read_json(run / "config.json")["arguments"]
    assert arguments["trees"] == 12
    assert arguments["alpha"] is None


def test_the_linear_classifier_takes_the_best_ridge_on_validation(tiny, workdir, features, script):
    script("random_forest", "--data", tiny, *LINEAR, "--layers", "block3_conv3")
    run = only_run(workdir)
    metrics = read_json(run / "metrics.json")

    # each is scikit-learn's ridge on standardised square roots
    dataset = load_dataset(tiny)
    x, y, _ = load_features(features, dataset, "train", "block3_conv3")
    x_val, y_val, _ = load_features(features, dataset, "val", "block3_conv3")
    scores = {}
    for row in metrics["classifiers"]:
        alpha = row["alpha"]
        scores[alpha] = ridge(x, y, alpha=alpha).score(x_val, y_val)
        assert row["val_accuracy"] == scores[alpha]
    assert tuple(scores) == random_forest.ALPHAS

    # the best is kept, of equals the more regularised one
    alpha = metrics["alpha"]
    assert alpha == max(reversed(scores), key=scores.get)
    pipeline = load_pipeline(run / "pipeline.skops")
    ratio = pipeline[-1].coef_ / ridge(x, y, alpha=alpha)[-1].coef_
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)

    # and so is its confusion matrix
    counts = read_counts(run, dataset.labels)
    assert np.trace(counts) / counts.sum() == scores[alpha]

    # what explains it are layers
    script("test_model", "--run", run, "--data", tiny, "--explain")
    assert (run / "test" / "layer_importance.csv").exists()


def test_a_grid_is_fitted_from_one_extraction(tiny, workdir, features, script, monkeypatch):
    monkeypatch.setattr("transfer.features.build_network", None)
    opened = []

    def watch(folder, dataset, split, layers):
        opened.append(split)
        return load_features(folder, dataset, split, layers)

    # all that it needs is read once
    monkeypatch.setattr("transfer.features.load_features", watch)
    script("random_forest", "--data", tiny, "--grid", "--trees", "3")
    assert opened == ["train", "val"]

    # every setting once
    run = only_run(workdir)
    rows = read_rows(run / "classifiers.csv")
    assert len(rows) == 3 * 2 * 3
    assert len({row["n_features"] for row in rows}) == 3

    # the best one kept
    best = max(float(row["val_accuracy"]) for row in rows)
    assert read_json(run / "metrics.json")["val_accuracy"] == best


def test_a_fit_is_announced_before_it_begins(tiny, workdir, features, script, capsys, monkeypatch):
    monkeypatch.setattr(classifiers, "fit_classifier", None)  # which cannot be called
    with pytest.raises(TypeError):
        script("random_forest", "--data", tiny, "--grid")
    assert "\nFitting 1 of 54, {'layers': 'all', " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (HARMLESS[:-10], "not a zip"),
        (HARMLESS.replace(b"discretize", b"discretise"), "CRC"),
        (skops.io.dumps(FunctionTransformer(shutil.rmtree)), "shutil.rmtree"),
    ],
    ids=["cut short", "changed", "of another type"],
)
def test_a_damaged_pipeline_or_one_of_other_types_is_refused(content, reason, tmp_path):
    path = tmp_path / "a.skops"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=f"a.skops is damaged or not a pipeline.*{reason}"):
        load_pipeline(path)


# --- the flags ---


def test_the_grid_has_every_setting_of_the_study():
    plan = random_forest.plan_settings(random_forest.parse_args(["--grid"]))
    found = [(layers, discretized, *setting.values()) for layers, discretized, setting in plan]

    # of one leaf the smaller forests first: of equals the last is the best
    layers = ("all", "last", "block5_conv3")
    assert found == list(product(layers, (False, True), (2, 7, 20), (12, 50, 100)))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ((), "forest-none-all-trees100-leaf2"),
        (("--layers", "last,fc1", "--leaf", "7"), "forest-none-last,fc1-trees100-leaf7"),
        (("--discretize",), "forest-none-all-trees100-leaf2-discretized"),
        (("--balanced",), "forest-none-all-trees100-leaf2-balanced"),
        (("--grid", "--trees", "5", "--balanced"), "forest-none-grid-balanced"),
        ((*LINEAR, "--alpha", "1e2", "--balanced"), "linear-none-all-balanced"),
    ],
)
def test_a_run_is_named_after_what_is_run(flags, name):
    assert random_forest.name_run(random_forest.parse_args(flags), "none") == name


@pytest.mark.parametrize("flags", [("--layers", "block9"), ("--features", "nowhere")])
def test_features_without_a_layer_or_folder_are_named(tiny, workdir, features, script, flags):
    with pytest.raises(BadInput, match=flags[1]):
        script("random_forest", "--data", tiny, *flags)

    # before a run begins
    assert not (workdir / "runs").exists()


def test_help_says_what_a_flag_is_and_its_default(capsys):
    with pytest.raises(SystemExit):
        random_forest.parse_args(["--help"])

    # the noun first, the default last
    trees = random_forest.DEFAULTS["trees"][0]
    assert f"number of trees (default: {trees})" in capsys.readouterr().out
