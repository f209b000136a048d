"""Training in stages, and the scripts that do it: train.py, finetune.py, train_pretrained.py."""

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
from transfer.weights import load_model, weights_digest

FAST = ("--epochs", "1", "--fine-tune-epochs", "1", "--batch-size", "32")


@pytest.fixture
def no_curves(monkeypatch):
    """Drawing them takes longer than the trainings of these tests."""
    monkeypatch.setattr("transfer.train.plot_curves", lambda *_: None)


def evaluate(model, dataset):
    """The accuracy on the validation split."""
    val = dataset.splits["val"]
    answers = model.predict(val.images[:], verbose=0).argmax(axis=1)
    return np.mean(answers == val.labels)


# ------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize("head", ["iii", pytest.param("multilayer", marks=pytest.mark.slow)])
def test_each_stage_changes_just_the_layers_it_names(tiny, tmp_path, narrow, head):
    """Of the head "multilayer" too, which takes something from frozen blocks."""
    model, dataset = make(tiny, tmp_path, head)
    convolutions = set(common.convolutions(model))
    for name, blocks in UNFREEZE["stepped"]:
        before = snapshot(model)
        train(model, stage(blocks), dataset, tmp_path / name)

        unfrozen = {layer for layer in convolutions if layer.split("_")[0] in blocks}
        assert changed(before, model) == before.keys() - convolutions | unfrozen, name
    assert unfrozen == convolutions


def test_a_cosine_rises_and_falls_to_nothing():
    planned = stage(learning_rate=0.4, epochs=10, schedule="cosine")
    rate = new_optimizer(planned, 10)._learning_rate

    # a tenth of the updates to rise, and where it then is
    rates = [float(rate(update)) for update in (0, 5, 10, 40, 55, 100)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.3, 0.2, 0], abs=1e-6)


def test_the_optimizer_is_keras_adam():
    gradients = np.float32([[1, -20], [0.3, 1e-7], [-5, 0]])
    found = []
    for optimizer in (new_optimizer(stage(learning_rate=0.1), 3), keras.optimizers.Adam(0.1)):
        variable = keras.Variable([1.0, -2.0])
        for gradient in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        found.append(keras.ops.convert_to_numpy(variable))
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_a_stage_ends_with_the_weights_of_its_best_val_accuracy(tiny, tmp_path, narrow):
    model, dataset = make(tiny, tmp_path, head="i")
    history = train(model, stage(epochs=8), dataset, tmp_path)

    # not those of the last epoch
    seen = [row["val_accuracy"] for row in history]
    assert seen[-1] < max(seen)  # else the test says nothing
    assert evaluate(model, dataset) == pytest.approx(max(seen))


def test_a_short_stage_gives_batch_normalisation_the_statistics_of_its_images(
    tiny, tmp_path, narrow
):
    """At Keras' momentum a few updates would leave nearly all of its zeros and ones."""
    # the statistics
    model, dataset = make(tiny, tmp_path, head="multilayer")
    features = keras.Model(model.input, model.get_layer("features").output)
    expected = features.predict(dataset.splits["train"].images, verbose=0)

    # what two updates leave
    train(model, stage(schedule="cosine"), dataset, tmp_path)
    layer = model.get_layer("batch_normalization")
    difference = np.abs(layer.moving_mean - expected.mean(0))
    assert np.median(difference / (expected.std(0) + 1e-3)) < 0.5
    assert layer.momentum == 0.99  # what is saved is Keras' own


def test_balanced_classes_count_alike(tiny, tmp_path, narrow):
    # a batch of classes of very unequal size
    model, dataset = make(tiny, tmp_path)
    dataset.splits["train"].labels[:] = np.repeat(range(4), [16, 8, 6, 2])
    inputs = dict.fromkeys(("train", "val"), np.zeros((32, 2)))
    batches, _ = stage_batches(stage(balanced=True), model, inputs, dataset)

    # each row weighs as its class is rare
    _, y, weights = batches[0]
    np.testing.assert_allclose(weights, np.take([0.5, 1, 4 / 3, 4], y), rtol=1e-6)


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

    assert "Caching the frozen layers' output (0.00 GB" in said(seed=0)
    assert "Caching the frozen layers' output (0.00 GB" in said(seed=1)
    assert "frozen" not in said(seed=0)  # they are there and take nothing more


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others decide themselves")
def test_a_large_model_trains_the_same(tiny, tmp_path, narrow, monkeypatch):
    """With workers that load its batches."""
    workers = []
    fit = keras.Model.fit

    def recorded(model, batches, **settings):
        workers.append(batches.workers)
        return fit(model, batches, **settings)

    def trained(folder):
        model, dataset = make(tiny, tmp_path, "multilayer")
        return losses(train(model, stage(batch_size=5), dataset, folder, tmp_path))

    monkeypatch.setattr(keras.Model, "fit", recorded)
    expected = trained(tmp_path / "usual")
    monkeypatch.setattr("transfer.train.LARGE_MODEL", 1)
    assert trained(tmp_path / "large") == expected
    assert workers == [1, 2]


def test_a_log_file_gets_a_line_now_and_then_within_an_epoch(
    tiny, tmp_path, narrow, monkeypatch, capsys
):
    monkeypatch.setattr("transfer.console.LINE_EVERY", 0)
    monkeypatch.setattr("transfer.console.SHOWN_AFTER", 0)

    # three batches
    model, dataset = make(tiny, tmp_path, head="gap")
    train(model, stage(batch_size=15), dataset, tmp_path)

    line = r"(?m)^epoch 1: (\d+) of 32 images, .*images/s, .* left$"
    counts = re.findall(line, capsys.readouterr().err)
    assert set(counts) - {"0"} == {"15", "30", "32"}


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

    # all but the figures
    lines = (run / "history.csv").read_text().splitlines()[1:]
    assert [line.rsplit(",", 4)[0] for line in lines] == [
        "1,1,tiny,dense,False,0.001",
        "2,1,tiny,dense,False,0.001",
        "3,2,tiny,dense + block4 + block5,False,1e-05",
        "4,3,tiny,all,False,1e-05",
        '5,4,tiny,"all, augmented",True,1e-05',
    ]

    # the figures of the best epoch, which model.keras is
    metrics = read_json(run / "metrics.json")
    history = read_rows(run / "history.csv")
    best = max(history, key=lambda row: float(row["val_accuracy"]))
    assert [metrics[key] for key in FIGURES] == [float(best[key]) for key in FIGURES]
    dataset = load_images(load_dataset(tiny), ("val",), 32)
    assert evaluate(load_model(run), dataset) == pytest.approx(metrics["val_accuracy"])
    assert metrics["notice"] == "TINY DATASET of the tests."


def test_the_same_command_gives_the_same_figures_and_overwrites_nothing(
    tiny, workdir, narrow, no_curves, script
):
    command = ("finetune", "--data", tiny, "--head", "i", "--augment", *FAST)

    # twice, and with another seed
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

    # it trained every layer
    new, _ = make(tiny, workdir, "gap")
    pretrained = snapshot(load_model(run))
    assert changed(pretrained, new) == pretrained.keys()

    # what stays frozen is as it was
    script("finetune", "--data", tiny, "--weights", run, "--out", "tuned", *FAST)
    tuned = load_model(workdir / "tuned")
    del pretrained["predictions"]
    assert changed(pretrained, tuned) == set()

    # what it started from decides what is resumed
    digest = weights_digest(tuned, common.convolutions(tuned))
    assert read_json("tuned/config.json")["weights_sha256"] == digest


@pytest.mark.slow
def test_bfloat16_is_what_layers_compute_in_and_near_float32(
    tiny, workdir, narrow, no_curves, stored_features, script
):
    flags = ("--data", tiny, "--precision", "bfloat16")
    script("finetune", *flags, *FAST)
    model = load_model(only_run(workdir))
    assert model.get_layer("block3_conv1").compute_dtype == "bfloat16"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}

    script("extract_features", *flags, "--out", "brief")
    plain = np.load(stored_features / "val.npy")
    rounding = np.linalg.norm(np.load("brief/val.npy") - plain)
    assert 0 < rounding / np.linalg.norm(plain) < 0.02


def test_a_training_that_diverges_ends_with_a_sentence_and_keeps_nothing(
    tiny, workdir, narrow, no_curves, script
):
    command = ("finetune", "--data", tiny, "--unfreeze", "all", *FAST)

    # the same command again ends in the same way
    for _ in range(2):
        with pytest.raises(BadInput, match=r"diverged in epoch 1 .*nan.*lower --learning-rate"):
            script(*command, "--fine-tune-learning-rate", "1e30")

    # the first stage is kept; it holds numbers
    run = only_run(workdir)
    assert not (run / "metrics.json").exists()
    load_model(run / "model.keras")
    assert len(read_rows(run / "history.csv")) == 1
