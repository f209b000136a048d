"""Training in stages, and the scripts that do it: train.py, finetune.py, train_pretrained.py."""

import importlib
import re

import keras
import numpy as np
import pytest
from conftest import only_run, read_rows
from training import changed, losses, make, snapshot, stage, train

import common
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import read_json
from transfer.images import load_images
from transfer.study import FIGURES, UNFREEZE
from transfer.train import new_optimizer, stage_batches
from transfer.weights import load_model

FAST = ("--epochs", "1", "--fine-tune-epochs", "1", "--batch-size", "32")


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing them takes longer than the trainings of these tests."""
    monkeypatch.setattr("transfer.train.plot_curves", lambda *_: None)


def evaluate(model, dataset):
    """Keras' own accuracy on the validation split."""
    val = dataset.splits["val"]
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    _, accuracy = model.evaluate(val.images[:], val.labels, verbose=0)
    return accuracy


# ------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        ("iii", {"batch_normalization", "fc1", "fc2", "fc3", "predictions"}),
        # frozen blocks give something to the head, beside what they give to the next block
        pytest.param(
            *("multilayer", {"batch_normalization", "predictions"}), marks=pytest.mark.slow
        ),
    ],
)
def test_each_stage_changes_just_the_layers_it_names(tiny, tmp_path, narrow, head, layers):
    model, dataset = make(tiny, tmp_path, head)
    convolutions = common.convolutions(model)
    for name, blocks in UNFREEZE["stepped"]:
        before = snapshot(model)
        train(model, stage(blocks), dataset, tmp_path / name)

        unfrozen = {layer for layer in convolutions if layer.split("_")[0] in blocks}
        assert changed(before, model) == layers | unfrozen, name
    assert unfrozen == set(convolutions)


def test_a_cosine_rises_and_falls_to_nothing():
    long = new_optimizer(stage(learning_rate=0.4, epochs=10, schedule="cosine"), 10)
    rates = [float(long._learning_rate(update)) for update in (0, 5, 10, 40, 55, 100)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.3, 0.2, 0], abs=1e-6)
    short = new_optimizer(stage(learning_rate=0.4, schedule="cosine"), 1)
    assert float(short._learning_rate(0)) == pytest.approx(0.4)  # no room for a warm-up


def test_a_stage_ends_with_the_weights_of_its_best_val_accuracy(tiny, tmp_path, narrow):
    model, dataset = make(tiny, tmp_path, head="i")
    history = train(model, stage(epochs=8), dataset, tmp_path)
    seen = [row["val_accuracy"] for row in history]
    assert seen[-1] < max(seen)  # else the test says nothing
    assert evaluate(model, dataset) == pytest.approx(max(seen))


def test_a_short_stage_gives_batch_normalisation_the_statistics_of_its_images(
    tiny, tmp_path, narrow
):
    """At Keras' momentum a few updates would leave nearly all of its zeros and ones."""
    model, dataset = make(tiny, tmp_path, head="multilayer")
    features = keras.Model(model.input, model.get_layer("features").output)
    expected = features.predict(dataset.splits["train"].images, verbose=0)
    train(model, stage(schedule="cosine"), dataset, tmp_path)

    layer = model.get_layer("batch_normalization")
    difference = np.abs(layer.moving_mean - expected.mean(0))
    assert np.median(difference / (expected.std(0) + 1e-3)) < 0.5
    assert layer.momentum == 0.99  # what is saved is Keras' own


def test_balanced_classes_count_alike(tiny, tmp_path, narrow):
    model, dataset = make(tiny, tmp_path)
    dataset.splits["train"].labels[:] = np.repeat(range(4), [16, 8, 6, 2])
    inputs = dict.fromkeys(("train", "val"), np.zeros((32, 2)))
    batches, _ = stage_batches(stage(balanced=True), model, inputs, dataset)
    np.testing.assert_allclose(batches.class_weights, [0.5, 1, 4 / 3, 4])

    # shared out among three devices: two more rows, which count nothing in a mean over all
    batches.share = common.Share(3)
    _, y, weights = batches[0]
    expected = batches.class_weights[y[:16]] * 18 / 16
    np.testing.assert_allclose(weights, [*expected, 0, 0])


# --------------------------------------------------------------------- cached activations, engines


def test_activations_are_cached_where_there_is_room_and_follow_the_weights(
    tiny, tmp_path, narrow, monkeypatch, capsys
):
    def said(seed):
        model, dataset = make(tiny, tmp_path, "gap", seed)
        train(model, stage(), dataset, tmp_path)
        return capsys.readouterr().out

    with monkeypatch.context() as patch:
        patch.setattr("transfer.activations.MAX_DISK_SHARE", 0)
        assert "Not enough disk space to cache the frozen layers' output" in said(seed=0)
    assert not list(tmp_path.glob("*pool*.npy"))

    assert "Caching the frozen layers' output (0.00 GB" in said(seed=0)
    assert "frozen" not in said(seed=0)  # they are there and take nothing more
    assert "Caching the frozen layers' output (0.00 GB" in said(seed=1)
    assert "frozen" not in said(seed=0)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others decide themselves")
@pytest.mark.parametrize(
    ("augment", "compiled"), [(False, True), pytest.param(True, False, marks=pytest.mark.slow)]
)
def test_a_large_model_trains_the_same(tiny, tmp_path, narrow, monkeypatch, augment, compiled):
    """By XLA where it is a head alone, and with workers that load its batches."""
    fitted = []
    fit = keras.Model.fit

    def recorded(model, batches, **settings):
        fitted.append((model.jit_compile, batches.workers))
        return fit(model, batches, **settings)

    def trained(folder):
        # a head without dropout, of which XLA draws other masks
        model, dataset = make(tiny, tmp_path, "multilayer")
        planned = stage(batch_size=5, augment=augment)
        return losses(train(model, planned, dataset, folder, tmp_path))

    monkeypatch.setattr(keras.Model, "fit", recorded)
    expected = trained(tmp_path / "usual")
    monkeypatch.setattr("transfer.train.LARGE_MODEL", 1)
    if compiled:  # what runs eagerly is not compiled
        importlib.import_module("tensorflow").config.run_functions_eagerly(False)
    found = trained(tmp_path / "large")

    assert fitted == [(False, 1), (compiled, 2)]
    np.testing.assert_allclose(found, expected, rtol=1e-4 if compiled else 0)


def test_a_log_file_gets_a_line_now_and_then_within_an_epoch(
    tiny, tmp_path, narrow, monkeypatch, capsys
):
    monkeypatch.setattr("transfer.console.LINE_EVERY", 0)
    monkeypatch.setattr("transfer.console.SHOWN_AFTER", 0)
    model, dataset = make(tiny, tmp_path, head="gap")
    train(model, stage(batch_size=15), dataset, tmp_path)

    line = re.compile(r"^epoch 1: (\d+) of 32 images, .*images/s, .* left$", re.MULTILINE)
    counts = {int(count) for count in line.findall(capsys.readouterr().err)}
    assert counts - {0} == {15, 30, 32}


# ----------------------------------------------------------------------------------------- scripts


def test_a_stepped_run_leaves_its_record(tiny, workdir, narrow, script, capsys):
    flags = ("--unfreeze", "stepped", "--final-augment", *FAST, "--epochs", "2")
    script("finetune", "--data", tiny, *flags)

    # on screen
    out = capsys.readouterr().out
    assert out.count("TINY DATASET of the tests.") == 2
    assert "stepwise, then augmentation" in out  # the study's row beside ours

    # in files
    run = only_run(workdir)
    assert run.name == "tiny-finetune-iii-stepped-final-augment"
    files = {path.name for path in run.iterdir()}
    assert files == {"config.json", "history.csv", "metrics.json", "curves.png", "model.keras"}

    history = read_rows(run / "history.csv")
    assert [list(row.values())[:-4] for row in history] == [
        ["1", "1", "tiny", "dense", "False", "0.001"],
        ["2", "1", "tiny", "dense", "False", "0.001"],
        ["3", "2", "tiny", "dense + block4 + block5", "False", "1e-05"],
        ["4", "3", "tiny", "all", "False", "1e-05"],
        ["5", "4", "tiny", "all, augmented", "True", "1e-05"],
    ]

    metrics = read_json(run / "metrics.json")
    best = max(history, key=lambda row: float(row["val_accuracy"]))
    assert [metrics[key] for key in FIGURES] == [float(best[key]) for key in FIGURES]
    assert metrics["notice"] == "TINY DATASET of the tests."

    dataset = load_images(load_dataset(tiny), ("val",), 32)
    assert read_json(run / "config.json")["dataset"]["fingerprint"] == dataset.fingerprint
    # model.keras is the epoch that the metrics speak of
    assert evaluate(load_model(run), dataset) == pytest.approx(metrics["val_accuracy"])


def test_the_same_command_gives_the_same_figures_and_overwrites_nothing(
    tiny, workdir, narrow, no_curves, script
):
    command = ("finetune", "--data", tiny, "--head", "i", "--augment", *FAST)
    script(*command)
    script(*command)
    script(*command, "--seed", "1", "--out", "runs/other")

    other, first, second = sorted(workdir.glob("runs/*/metrics.json"))
    assert first.parent.name == "tiny-finetune-i-none-augment"
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_pretrained_convolutions_are_what_fine_tuning_starts_from(
    tiny, workdir, narrow, no_curves, script
):
    script("train_pretrained", "--data", tiny, "--top", "gap")
    run = only_run(workdir)
    assert run.name == "tiny-pretrained-gap"

    new, _ = make(tiny, workdir, "gap")
    pretrained = snapshot(load_model(run))
    assert changed(pretrained, new) == pretrained.keys()  # it trained every layer

    script("finetune", "--data", tiny, "--weights", run, "--out", "tuned", *FAST)
    del pretrained["predictions"]
    assert changed(pretrained, load_model(workdir / "tuned")) == set()


@pytest.mark.slow
def test_a_bfloat16_run_is_trained_tested_and_taken_features_from(
    tiny, workdir, narrow, no_curves, script
):
    script("finetune", "--data", tiny, "--head", "iii", "--precision", "bfloat16", *FAST)
    run = only_run(workdir)
    model = load_model(run)
    assert model.get_layer("block3_conv1").compute_dtype == "bfloat16"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}

    script("test_model", "--data", tiny, "--run", run)
    assert (run / "test" / "metrics.json").exists()

    command = ("extract_features", "--data", tiny, "--weights", run, "--layers", "last")
    script(*command, "--out", "plain")
    script(*command, "--out", "brief", "--precision", "bfloat16")
    plain, brief = (np.load(f"{folder}/val.npy") for folder in ("plain", "brief"))
    assert 0 < np.linalg.norm(brief - plain) / np.linalg.norm(plain) < 0.02


def test_a_training_that_diverges_ends_with_a_sentence_and_keeps_nothing(
    tiny, workdir, narrow, no_curves, script
):
    command = ("finetune", "--data", tiny, "--unfreeze", "all", *FAST)
    for _ in range(2):  # the same command again ends in the same way
        with pytest.raises(BadInput, match=r"diverged in epoch 1 .*nan.*lower --learning-rate"):
            script(*command, "--fine-tune-learning-rate", "1e30")

    run = only_run(workdir)
    assert not (run / "metrics.json").exists()
    load_model(run / "model.keras")  # of the first stage; it holds numbers
    assert len(read_rows(run / "history.csv")) == 1
