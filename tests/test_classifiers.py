"""Forests and linear classifiers: classifiers.py, random_forest.py."""

import shutil
from itertools import product
from unittest.mock import Mock

import numpy as np
import pytest
import skops.io
from conftest import only_run, read_rows
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import confusion_matrix
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


def ridge(**settings):
    """scikit-learn's ridge on standardised square roots."""
    root = FunctionTransformer(np.sqrt)
    return make_pipeline(root, StandardScaler(), RidgeClassifier(**settings))


# --- what is fitted ---


def test_the_embedding_has_the_training_statistics():
    rng = np.random.default_rng(0)
    x = rng.gamma(0.5, 30, (200, 12)).astype("float32")
    x[:, 0] = 3.3  # never varies
    x[:100, 1] = 0  # varies only later
    train, val = np.split(x, 2)

    # what never varies says nothing, what varies only later is not hidden
    z = StandardScaler().fit(train).transform(val)
    expected = np.select([z < -0.25, z > 0.15], [-1, 1])
    assert not expected[:, 0].any()
    assert expected[:, 1].any()

    y = np.arange(100) % 3
    pipeline = classifiers.new_pipeline({"n_estimators": 1}, True, 0).fit(train, y)
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
    roots = rng.normal(10, 1, (6000, 20))
    roots[np.arange(6000), y] += 1.5
    x = (roots**2).astype("float32")
    x[:, -5:] = rng.normal(0, 1, (6000, 5))  # a network of one's own may give some below 0

    # so few to train on that it is surer of them than of others
    parts = [100, 3000]
    train, val, (x_test, y_test) = zip(np.split(x, parts), np.split(y, parts))

    pipeline, _ = classifiers.fit_classifier({"alpha": 1.0}, train, val, False, 0)

    # among the least certain, the others and the most certain as many are right as they say
    probabilities = pipeline.predict_proba(x_test)
    right = probabilities.argmax(axis=1) == y_test
    certainty = probabilities.max(axis=1)
    for third in np.array_split(np.argsort(certainty), 3):
        assert abs(certainty[third].mean() - right[third].mean()) < 0.05


def test_the_temperature_is_bounded_where_validation_has_no_mistake():
    factor = classifiers.find_factor(np.array([-1.0, 1.0]), np.array([0, 1]))
    assert factor == pytest.approx(np.exp(classifiers.TEMPERATURE_BOUNDS[1]), rel=1e-3)


@pytest.mark.parametrize("classifier", ["forest", "linear"])
def test_balanced_is_scikit_learns(classifier):
    args = random_forest.parse_args(["--classifier", classifier, "--balanced"])
    _, _, setting = random_forest.plan_settings(args)[0]
    pipeline = classifiers.new_pipeline(setting, False, 0)
    assert pipeline[-1].class_weight == "balanced"


# --- what a run leaves ---


def test_a_forest_leaves_its_record(tiny, workdir, extracted, script, capsys):
    # the notice comes first and last
    script("random_forest", "--data", tiny, "--leaf", "2", "--trees", "12")
    assert capsys.readouterr().out.count("TINY DATASET of the tests.") == 2
    run = only_run(workdir)

    # the figures are scikit-learn's
    dataset = load_dataset(tiny)
    x, y, _ = load_features(extracted, dataset, "train")
    x_val, y_val, _ = load_features(extracted, dataset, "val")
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
    rows = read_rows(run / "confusion_val.csv")
    counts = [[int(row[f"predicted: {label}"]) for label in dataset.labels] for row in rows]
    assert counts == confusion_matrix(y_val, predicted).tolist()
    assert (run / "confusion_val.png").exists()


def test_the_linear_classifier_takes_the_best_ridge_on_validation(tiny, workdir, extracted, script):
    script("random_forest", "--data", tiny, *LINEAR, "--layers", "block3_conv3")
    run = only_run(workdir)
    metrics = read_json(run / "metrics.json")

    # each is scikit-learn's ridge on standardised square roots
    dataset = load_dataset(tiny)
    x, y, _ = load_features(extracted, dataset, "train", "block3_conv3")
    x_val, y_val, _ = load_features(extracted, dataset, "val", "block3_conv3")
    fitted = {alpha: ridge(alpha=alpha).fit(x, y) for alpha in random_forest.ALPHAS}
    scores = {alpha: alone.score(x_val, y_val) for alpha, alone in fitted.items()}
    assert {row["alpha"]: row["val_accuracy"] for row in metrics["classifiers"]} == scores

    # the best is kept, of equals the more regularised one
    alpha = metrics["alpha"]
    assert alpha == max(reversed(scores), key=scores.get)
    pipeline = load_pipeline(run / "pipeline.skops")
    ratio = pipeline[-1].coef_ / fitted[alpha][-1].coef_
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-3)


def test_a_grid_is_fitted_from_one_extraction(tiny, workdir, extracted, script, monkeypatch):
    monkeypatch.setattr("transfer.features.build_network", None)
    read = Mock(wraps=load_features)
    monkeypatch.setattr("transfer.features.load_features", read)
    script("random_forest", "--data", tiny, "--grid", "--trees", "3")

    # each split is read once, every setting fitted once
    assert read.call_count == 2
    rows = read_rows(only_run(workdir) / "classifiers.csv")
    assert len(rows) == 3 * 2 * 3


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
        (("--grid", "--trees", "5", "--balanced"), "forest-none-grid-balanced"),
        ((*LINEAR, "--alpha", "1e2", "--balanced"), "linear-none-all-balanced"),
    ],
)
def test_a_run_is_named_after_what_is_run(flags, name):
    assert random_forest.name_run(random_forest.parse_args(flags), "none") == name


@pytest.mark.parametrize("flags", [("--layers", "block9"), ("--features", "nowhere")])
def test_features_without_a_layer_or_folder_are_named(tiny, workdir, extracted, script, flags):
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
