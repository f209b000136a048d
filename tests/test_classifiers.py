"""Forests and linear classifiers: classifiers.py, random_forest.py."""

import json
import shutil

import numpy as np
import pytest
import skops.io
from conftest import only_run, read_rows
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

import random_forest
from common import discretize
from transfer import classifiers
from transfer.classifiers import load_pipeline
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features


@pytest.fixture
def features(workdir, stored_features):
    """The stored features, copied to where the scripts look for them."""
    folder = workdir / "features" / stored_features.name
    shutil.copytree(stored_features, folder)
    return folder


def test_embedding_equals_numpys_with_the_training_statistics():
    rng = np.random.default_rng(0)
    train = rng.gamma(0.5, 30, (200, 40)).astype("float32")
    train[:, 7] = 3.3  # never varies
    train[:, 8] = 0
    val = rng.gamma(0.7, 40, (50, 40)).astype("float32")
    val[:, 7] = 3.3
    labels = np.arange(200) % 3, np.arange(50) % 3
    setting = [{"min_samples_leaf": 2, "n_estimators": 1}]
    pairs = (train, labels[0]), (val, labels[1])
    ((pipeline, _, _),) = classifiers.fit_classifiers(setting, *pairs, True, 0)
    steps = pipeline[:-1]
    deviation = train.astype("float64").std(axis=0)
    deviation[[7, 8]] = 1
    for split in (train, val):
        z = (split - train.mean(axis=0, dtype="float64")) / deviation
        expected = np.where(z < -0.25, -1, np.where(z > 0.15, 1, 0))
        clear = (np.abs(z + 0.25) > 1e-4) & (np.abs(z - 0.15) > 1e-4)
        ours = steps.transform(split)
        np.testing.assert_array_equal(ours[clear], expected[clear])
        assert not ours[:, 7].any()
    assert steps.transform(val)[:, 8].max() == 1  # what varies only later is not hidden


def test_forests_grown_from_smaller_ones_equal_those_fitted_alone():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 30)).astype("float32"), rng.integers(0, 4, 120)
    plan = random_forest.plan_settings(random_forest.parse_args(["--grid", "--no-discretize"]))
    settings = [setting for setting in plan["all", False] if setting["min_samples_leaf"] < 20]
    found = classifiers.fit_classifiers(settings, (x, y), (x, y), False, 5)
    found = [
        (row["min_samples_leaf"], row["n_estimators"], pipeline) for pipeline, row, *_ in found
    ]
    assert [(leaf, n) for leaf, n, _ in found] == [(a, b) for a in (2, 7) for b in (12, 50, 100)]
    for leaf, n_estimators, pipeline in found:
        alone = RandomForestClassifier(n_estimators, min_samples_leaf=leaf, random_state=5).fit(
            x, y
        )
        np.testing.assert_array_equal(pipeline.predict_proba(x), alone.predict_proba(x))


def test_a_run_leaves_its_record(tiny, workdir, features, script, capsys):
    script("random_forest", "--data", tiny, "--leaf", "2", "--trees", "12")
    out = capsys.readouterr().out
    assert out.count("TINY DATASET of the tests.") == 2
    run = only_run(workdir)
    assert run.name == "tiny-forest-none-all-trees12-leaf2"
    metrics = json.loads((run / "metrics.json").read_text())
    dataset = load_dataset(tiny)
    x, y, _ = load_features(features, dataset, "train", "all")
    x_val, y_val, _ = load_features(features, dataset, "val", "all")
    alone = RandomForestClassifier(12, min_samples_leaf=2, random_state=0).fit(x, y)
    assert metrics["val_accuracy"] == pytest.approx(alone.score(x_val, y_val))
    assert metrics["accuracy"] == pytest.approx(alone.score(x, y))
    assert (metrics["n_estimators"], metrics["min_samples_leaf"], metrics["n_features"]) == (
        12,
        2,
        12416,
    )
    rows = read_rows(run / "confusion_val.csv")
    counts = np.array([[int(row[label]) for label in dataset.labels] for row in rows])
    assert np.trace(counts) / counts.sum() == pytest.approx(metrics["val_accuracy"])
    assert (run / "confusion_val.png").read_bytes().startswith(b"\x89PNG")
    pipeline = load_pipeline(run / "pipeline.skops")
    np.testing.assert_array_equal(pipeline.predict(x_val), alone.predict(x_val))


def ridge(**settings):
    return make_pipeline(
        FunctionTransformer(np.sqrt), StandardScaler(), RidgeClassifier(**settings)
    )


def probabilities_of(alone, x, x_val, y_val):
    """Those of scores times the factor by which the labels of val are most probable: there the scores of
    the labels are on average those that the probabilities expect."""
    scores = alone.decision_function(x_val).astype("float64")
    of_labels = scores[np.arange(len(y_val)), y_val].mean()
    expected = lambda factor: (softmax(factor * scores, axis=1) * scores).sum(axis=1).mean()  # noqa: E731
    factor = brentq(lambda factor: expected(factor) - of_labels, np.exp(-2), np.exp(3))
    return softmax(factor * alone.decision_function(x), axis=1)


def test_the_linear_classifier_is_scikit_learns_ridge_on_standardised_square_roots(
    tiny, workdir, features, script, capsys
):
    flags = ("--classifier", "linear", "--layers", "last", "--alpha", "100")
    script("random_forest", "--data", tiny, *flags)
    run = only_run(workdir)
    assert run.name == "tiny-linear-none-last-alpha100"
    dataset = load_dataset(tiny)
    (x, y, _), (x_val, y_val, _) = (
        load_features(features, dataset, s, "last") for s in ("train", "val")
    )
    alone = ridge(alpha=100).fit(x, y)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val_accuracy"] == pytest.approx(alone.score(x_val, y_val))
    assert metrics["accuracy"] == pytest.approx(alone.score(x, y))
    assert (metrics["alpha"], metrics["n_features"]) == (100, 1472)
    pipeline = load_pipeline(run / "pipeline.skops")
    expected = probabilities_of(alone, x_val, x_val, y_val)
    np.testing.assert_allclose(pipeline.predict_proba(x_val), expected, atol=1e-5)
    assert "on 32 x 1472 features" in capsys.readouterr().out
    script("test_model", "--run", run, "--data", tiny, "--explain")
    assert (run / "test" / "layer_importance.csv").exists()
    assert not (run / "test" / "explained").exists()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_linear_classifier_is_as_certain_as_it_is_right(classes):
    # the square roots are normal, of one variance, so that a softmax can be exactly right
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=6000)
    roots = rng.normal(10, 1, size=(6000, 20))
    roots[np.arange(6000), y] += 1.5
    x = (roots**2).astype("float32")
    x[:, -5:] = rng.normal(size=(6000, 5))  # such as a network of one's own may give: below 0 too
    train, val, test = ((x[start:][:2000], y[start:][:2000]) for start in (0, 2000, 4000))
    ((pipeline, _, _),) = classifiers.fit_classifiers([{"alpha": 1.0}], train, val, False, 0)
    probabilities = pipeline.predict_proba(test[0])
    right, certainty = probabilities.argmax(axis=1) == test[1], probabilities.max(axis=1)
    assert 0.7 < right.mean() < 0.9
    for low, high in ((0.5, 0.75), (0.75, 0.95), (0.95, 1)):
        chosen = (low < certainty) & (certainty <= high)
        assert abs(certainty[chosen].mean() - right[chosen].mean()) < 0.05


def test_probabilities_stay_finite_where_validation_has_no_mistake():
    x, y = np.repeat([[1.0, 9.0], [9.0, 1.0]], 20, axis=0).astype("float32"), np.repeat([0, 1], 20)
    ((pipeline, _, _),) = classifiers.fit_classifiers([{"alpha": 1.0}], (x, y), (x, y), False, 0)
    certainty = pipeline.predict_proba(x).max(axis=1)
    assert (certainty > 0.9).all() and np.isfinite(pipeline[-1].coef_).all()


def test_the_linear_classifier_takes_the_best_alpha_on_validation(
    tiny, workdir, features, script, monkeypatch, capsys
):
    command = (
        "random_forest",
        "--data",
        tiny,
        "--classifier",
        "linear",
        "--layers",
        "block3_conv3",
    )
    script(*command, "--out", "whole")
    metrics = json.loads((workdir / "whole" / "metrics.json").read_text())
    rows = metrics["classifiers"]
    assert [row["alpha"] for row in rows] == list(random_forest.ALPHAS)
    best = max(row["val_accuracy"] for row in rows)
    assert metrics["alpha"] == max(row["alpha"] for row in rows if row["val_accuracy"] == best)
    dataset, layers = load_dataset(tiny), "block3_conv3"
    (x, y, _), (x_val, y_val, _) = (
        load_features(features, dataset, s, layers) for s in ("train", "val")
    )
    pipeline = load_pipeline(workdir / "whole" / "pipeline.skops")
    kept, alone = pipeline[-1].coef_, ridge(alpha=metrics["alpha"]).fit(x, y)[-1].coef_
    factor = np.linalg.norm(kept) / np.linalg.norm(alone)
    np.testing.assert_allclose(kept, factor * alone, rtol=1e-4, atol=1e-7)
    assert pipeline.score(x_val, y_val) == best
    # interrupted between two, it fits what is left, and ends with the same figures
    save, left = classifiers.write_json, [3]

    def stop(*given):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        save(*given)

    monkeypatch.setattr(classifiers, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        script(*command, "--out", "cut")
    script(*command, "--out", "cut")
    assert left[0] == -len(random_forest.ALPHAS) + 2
    assert json.loads((workdir / "cut" / "metrics.json").read_text()) == metrics
    resumed = load_pipeline(workdir / "cut" / "pipeline.skops")
    np.testing.assert_array_equal(resumed[-1].coef_, pipeline[-1].coef_)


def test_grid_runs_every_setting_of_the_study_from_one_extraction(
    tiny, workdir, features, script, monkeypatch
):
    monkeypatch.setattr("transfer.features.build_network", None)
    opened = []
    watched = lambda *given: opened.append(given[2]) or load_features(*given)  # noqa: E731
    monkeypatch.setattr("transfer.features.load_features", watched)
    script("random_forest", "--data", tiny, "--grid")
    assert opened == ["train", "val"]
    run = only_run(workdir)
    rows = read_rows(run / "classifiers.csv")
    settings = {
        (r["layers"], r["discretize"], r["min_samples_leaf"], r["n_estimators"]) for r in rows
    }
    assert len(rows) == len(settings) == 3 * 2 * 3 * 3
    assert {r["n_features"] for r in rows} == {"12416", "1472", "512"}
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val_accuracy"] == max(float(r["val_accuracy"]) for r in rows)


@pytest.fixture
def forest():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)).astype("float32"), rng.integers(0, 3, 60)
    forest = RandomForestClassifier(3, random_state=0)
    return make_pipeline(StandardScaler(), FunctionTransformer(discretize), forest).fit(x, y), x


def test_a_damaged_forest_is_refused(forest, tmp_path):
    content = bytearray(skops.io.dumps(forest[0]))
    cut, changed = content[:-10], content.copy()
    changed[len(content) // 2] ^= 1
    for damaged in (cut, changed):
        (tmp_path / "a.skops").write_bytes(damaged)
        with pytest.raises(BadInput, match="not a whole pipeline"):
            load_pipeline(tmp_path / "a.skops")


def test_a_file_of_other_types_is_refused(tmp_path):
    path = tmp_path / "a.skops"
    path.write_bytes(skops.io.dumps(FunctionTransformer(shutil.rmtree)))
    with pytest.raises(BadInput, match="shutil.rmtree"):
        load_pipeline(path)


def test_features_without_a_layer_or_folder_are_named(tiny, workdir, features, script):
    with pytest.raises(BadInput, match="block9"):
        script("random_forest", "--data", tiny, "--layers", "block9")
    with pytest.raises(BadInput, match="nowhere"):
        script("random_forest", "--data", tiny, "--features", "nowhere")
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha", "3"], "--alpha is for --classifier linear"),
        (["--classifier", "linear", "--trees", "5"], "--trees is for --classifier forest"),
        (["--classifier", "linear", "--discretize"], "--discretize is for --classifier forest"),
        (["--classifier", "linear", "--leaf", "5"], "--leaf is for --classifier forest"),
    ],
)
def test_a_flag_of_another_classifier_is_refused(flags, message):
    with pytest.raises(BadInput, match=message):
        random_forest.parse_args(flags)


@pytest.mark.parametrize("classifier", ["forest", "linear"])
def test_balanced_is_scikit_learns(tiny, workdir, features, script, classifier):
    flags = ("--trees", "10") if classifier == "forest" else ("--alpha", "300")
    script(
        "random_forest",
        "--data",
        tiny,
        "--classifier",
        classifier,
        *flags,
        "--layers",
        "last",
        "--balanced",
    )
    run = only_run(workdir)
    assert run.name.startswith(f"tiny-{classifier}-none-last-balanced")
    rng = np.random.default_rng(0)
    x, y = rng.random((80, 6)).astype("float32"), np.repeat([0, 1, 2], [60, 15, 5])
    given = (
        {"alpha": 3.0} if classifier == "linear" else {"min_samples_leaf": 2, "n_estimators": 10}
    )
    settings = [given | {"class_weight": "balanced"}]
    ((pipeline, row, _),) = classifiers.fit_classifiers(settings, (x, y), (x, y), False, 3)
    if classifier == "linear":
        expected = probabilities_of(ridge(**settings[0]).fit(x, y), x, x, y)
    else:
        alone = RandomForestClassifier(random_state=3, **settings[0])
        expected = alone.fit(x, y).predict_proba(x)
    np.testing.assert_allclose(pipeline.predict_proba(x), expected, atol=1e-6)
    assert row["class_weight"] == "balanced"


def test_only_the_classifier_that_is_kept_is_drawn(tiny, workdir, features, script, monkeypatch):
    drawn = []
    monkeypatch.setattr(classifiers, "plot_confusion", lambda matrix, *given: drawn.append(matrix))
    script("random_forest", "--data", tiny, "--classifier", "linear", "--layers", "block5_conv3")
    metrics = json.loads((only_run(workdir) / "metrics.json").read_text())
    assert len(drawn) == 1 and len(metrics["classifiers"]) == len(random_forest.ALPHAS)
    assert np.trace(drawn[0]) / drawn[0].sum() == pytest.approx(metrics["val_accuracy"])
