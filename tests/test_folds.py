"""Cross-validation: folds.py, random_forest.py --folds, and what test_model.py makes of it."""

from itertools import cycle, product
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import only_run, read_rows, tiny_rows
from sklearn.datasets import make_blobs
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from transfer import folds
from transfer.classifiers import new_pipeline
from transfer.console import BadInput
from transfer.data import Split
from transfer.files import read_json
from transfer.folders import class_of

FOREST = {"min_samples_leaf": 2, "n_estimators": 5}
LINEAR = ("--classifier", "linear", "--layers", "last")
RIDGES = [{"alpha": alpha} for alpha in (0.01, 1.0, 100.0, 1e4)]
CLASSES = ["a", "b", "c"]


def pictures_of(files):
    """A dataset, and features as stored, of files CLASS/..., the last one a copy of the first."""
    labels = np.array([CLASSES.index(class_of(file)) for file in files])
    digests = np.array([*files[:-1], files[0]])
    rows = Split(np.array(files), labels, np.full(len(files), ""), digests)
    dataset = SimpleNamespace(splits={"train": rows}, labels=CLASSES)
    return dataset, {"train": (None, labels, rows.files)}


def in_objects(pictures, objects=6, views=3):
    """Files of three classes: c has `pictures` of them, the others `objects` in as many views."""
    parts = product("ab", range(objects), range(views))
    files = [f"{name}/{number}/{view}" for name, number, view in parts]
    return files + [f"c/{number}" for number in range(pictures)]


def assign(files, asked):
    dataset, stored = pictures_of(files)
    return folds.assign_folds(dataset, stored, asked, seed=1)


# --- which fold ---


@pytest.mark.parametrize("parted", [False, True])
def test_what_belongs_together_stays_in_one_fold(parted, capsys):
    files = in_objects(pictures=9) + ["a/copy"]  # of a/0/0
    placed = files
    if parted:
        splits = cycle(("train", "test"))
        placed = [f"{split}/{file}" for split, file in zip(splits, files)]
    found = assign(placed, 5)

    # an object is the first four letters
    objects = [file[:4] for file in files]
    fold_of = dict(zip(objects, found))
    assert [fold_of[name] for name in objects] == found.tolist()
    assert fold_of["a/co"] == fold_of["a/0/"]

    # as many as asked for, of each class as much as the groups allow
    assert set(found) == set(range(5))
    in_c = found[[file[0] == "c" for file in files]]
    assert sorted(np.bincount(in_c, minlength=5)) == [1, 2, 2, 2, 2]
    assert capsys.readouterr().out == ""


def test_folds_are_fewer_where_a_class_has_few_pictures_or_one_object_is_larger(capsys):
    files = in_objects(pictures=4, views=1) + [f"a/0/{number}" for number in range(1, 40)]
    found = assign(files, 5)
    assert set(found) == set(range(4))
    assert "4 folds, not 5: the class 'c' has 4 pictures or objects" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--folds needs 3 and the class 'c' has 2 pictures"):
        assign(in_objects(pictures=2), 5)


# --- the answers ---


@pytest.fixture
def noisy():
    """Features, labels and folds of 60 pictures."""
    x, y = make_blobs(60, 8, centers=3, cluster_std=6, random_state=0)
    return x.astype("float32"), y, np.arange(60) % 4


def cross_validate(settings, x, y, numbers):
    pipeline = new_pipeline(settings[0], False, 0)
    return folds.cross_validate(pipeline, settings, x, y, numbers)


@pytest.mark.parametrize("settings", [[FOREST], RIDGES[:1]])
def test_answers_are_those_of_scikit_learns_cross_validation(noisy, settings):
    x, y, numbers = noisy
    probabilities = cross_validate(settings, *noisy)
    alone = new_pipeline(settings[0], False, 0)
    expected = cross_val_predict(alone, x, y, cv=PredefinedSplit(numbers))
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected)


@pytest.mark.parametrize("settings", [[FOREST], RIDGES])
def test_nothing_of_a_fold_decides_its_answers(noisy, settings):
    x, y, numbers = noisy
    here = numbers == 1
    changed = np.where(here, (y + 1) % 3, y)
    before = cross_validate(settings, x, y, numbers)
    after = cross_validate(settings, x, changed, numbers)

    # neither a weight nor the penalty nor the factor of the softmax
    np.testing.assert_array_equal(before[here], after[here])
    assert not np.allclose(before[~here], after[~here])


def test_the_least_likely_labels_are_the_most_suspect():
    dataset, stored = pictures_of(["a/0", "b/0", "c/0", "a/1"])
    dataset.name = "few"
    rows = folds.every_picture(dataset, stored)
    answers = np.array([[0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.4, 0.5, 0.1]])
    suspects = folds.find_suspects(dataset, rows, answers)
    assert [tuple(row.values()) for row in suspects] == [
        ("c/0", "c", "a", 0.1, 0.5, "few"),
        ("a/0", "a", "b", 0.2, 0.7, "few"),
        ("a/1", "a", "b", 0.4, 0.5, "few"),
    ]


# --- the run ---


@pytest.mark.parametrize("flags", [LINEAR, ("--trees", "9")])
@pytest.mark.usefixtures("narrow")
def test_a_run_in_folds_is_tested_by_them(tiny, workdir, extracted, script, flags, capsys):
    script("random_forest", "--data", tiny, "--folds", "4", *flags)
    run = only_run(workdir)
    folder = run / "folds"
    printed = capsys.readouterr().out

    # every picture is answered once
    answers = read_rows(folder / "predictions.csv")
    assert sorted(row["file"] for row in answers) == sorted(file for file, *_ in tiny_rows())
    right = np.mean([row["true"] == row["predicted_1"] for row in answers])
    figures = read_json(folder / "metrics.json")
    assert figures["accuracy"] == right == read_json(run / "metrics.json")["val_accuracy"]
    assert (folder / "confusion_matrix.png").exists()

    # the suspects are those that are wrong
    suspects = read_rows(folder / "suspects.csv")
    assert len(suspects) == round((1 - right) * len(answers))
    assert (folder / "suspects.png").exists()

    # the same is shown where a test is asked for, which is none of its own pictures
    script("test_model", "--run", run, "--data", tiny, "--explain", "--accept", "0.1")
    shown = capsys.readouterr().out
    assert "Its 4 folds: each picture answered" in shown
    assert not (run / "test").exists()
    accuracy = f"{figures['balanced_accuracy']:.2%}"
    assert accuracy in printed
    assert accuracy in shown
    assert "answered with --accept" in shown
    assert (folder / "layer_importance.csv").exists()

    # and where two are compared
    script("test_model", "--data", tiny, "--compare", run, run)
    assert f"{len(answers)} images" in capsys.readouterr().out


def test_folds_are_of_one_setting(capsys, script):
    with pytest.raises(SystemExit):
        script("random_forest", "--folds", "5", "--grid")
    assert "--grid: not allowed with argument --folds" in capsys.readouterr().err
