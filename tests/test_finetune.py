"""Training in steps: finetune.py, train_pretrained.py, training.py."""

import csv
import json
from importlib.util import find_spec
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import common
import training
import weights
from dataset import BadInput, load_dataset, load_images
from study import UNFREEZE

FAST = ("--epochs", "1", "--fine-tune-epochs", "1")


def only_run(folder):
    (run,) = (folder / "runs").iterdir()
    return run


def read_history(run):
    with open(run / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def make(tiny, cache, head="iii", seed=0, **arguments):
    """A model, its data, and arguments for `training.train_step`."""
    keras.utils.set_random_seed(seed)
    dataset, images, _ = load_images(load_dataset(tiny), ("train", "val"), 32, str(cache))
    args = SimpleNamespace(batch_size=16, seed=seed, optimizer="adam", cache=str(cache), **arguments)
    vars(args).update(precision="float32", cache_dtype="float32")
    model = common.build_model(32, 4, head)
    weights.load_weights(model, "none", seed)
    return model, dataset, images, args


def step(blocks=(), augment=False, learning_rate=1e-3, epochs=1):
    return dict(name="", blocks=blocks, augment=augment, learning_rate=learning_rate, epochs=epochs)


def snapshot(model):
    return {layer.name: [w.copy() for w in layer.get_weights()] for layer in model.layers if layer.weights}


def changed(before, model):
    return {
        name
        for name, arrays in before.items()
        if any(np.any(a != b) for a, b in zip(arrays, model.get_layer(name).get_weights()))
    }


# What trains ------------------------------------------------------------------------------


def test_each_step_changes_just_the_layers_it_names(tiny, tmp_path):
    model, dataset, images, args = make(tiny, tmp_path)
    head = {"batch_normalization", "fc1", "fc2", "fc3", "predictions"}
    for name, blocks in UNFREEZE["stepped"]:
        before = snapshot(model)
        training.train_step(model, step(blocks), dataset, images, args, 0, tmp_path, lambda *_: None)
        conv = {name for name in common.convolutions(model) if name.split("_")[0] in blocks}
        assert changed(before, model) == head | conv, name
    assert conv == set(common.convolutions(model))


@pytest.mark.parametrize(
    ("blocks", "layer", "cache_dtype", "tolerance"),
    [
        ((), "block5_pool", "float32", 2e-4),
        (("block4", "block5"), "block3_pool", "float32", 2e-4),
        ((), "block5_pool", "float16", 5e-3),
    ],
)
def test_training_on_cached_activations_equals_the_uncached_run(
    tiny, tmp_path, blocks, layer, cache_dtype, tolerance
):
    def train(cache):
        model, dataset, images, args = make(tiny, tmp_path / "images", head="iii")
        args.cache, args.cache_dtype = str(cache), cache_dtype
        losses = []
        training.train_step(
            model,
            step(blocks, epochs=2, learning_rate=1e-4 if blocks else 1e-3),
            dataset,
            images,
            args,
            0,
            tmp_path,
            lambda _, logs: losses.append((logs["loss"], logs["val_loss"])),
        )
        return losses, snapshot(model)

    cached, cached_weights = train(tmp_path / "images")
    for path in (tmp_path / "images").glob(f"*{layer}*.npy"):
        assert np.load(path, mmap_mode="r").dtype == cache_dtype
    assert len(list((tmp_path / "images").glob(f"*{layer}*.npy"))) == 2
    plain, plain_weights = train("none")
    np.testing.assert_allclose(cached, plain, rtol=tolerance)
    for name, arrays in plain_weights.items():
        for ours, theirs in zip(cached_weights[name], arrays):
            np.testing.assert_allclose(ours, theirs, atol=max(3e-4, tolerance))


def test_activations_are_kept_only_where_there_is_room(tiny, tmp_path, monkeypatch, capsys):
    model, dataset, images, args = make(tiny, tmp_path / "images", head="i")
    arguments = (model, step(), dataset, images, args, 0, tmp_path, lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(training, "CACHE_SHARE", 0)
        training.train_step(*arguments)
    assert "too much, so each epoch computes them again" in capsys.readouterr().out
    assert not list((tmp_path / "images").glob("*pool*.npy"))
    training.train_step(*arguments)
    assert "The activations of block5_pool, computed once, take 0.00 GB" in capsys.readouterr().out
    training.train_step(*arguments)
    assert "activations" not in capsys.readouterr().out  # they are there and take nothing more


def test_activation_cache_follows_the_weights(tiny, tmp_path):
    for seed in (0, 1, 0):
        model, dataset, images, args = make(tiny, tmp_path, seed=seed)
        training.train_step(model, step(), dataset, images, args, 0, tmp_path, lambda *_: None)
    assert len(list(tmp_path.glob("*-train-*block5_pool*.npy"))) == 2


# Callbacks --------------------------------------------------------------------------------


def test_callbacks_stop_on_val_loss_and_keep_the_best_val_accuracy(tmp_path):
    stop, checkpoint, _ = common.training_callbacks(tmp_path / "c.weights.h5", lambda *_: None)
    assert (stop.monitor, stop.patience) == ("val_loss", 20)
    assert (checkpoint.monitor, checkpoint.mode, checkpoint.save_best_only) == ("val_accuracy", "max", True)


def test_a_step_ends_with_the_weights_of_its_best_val_accuracy(tiny, tmp_path):
    model, dataset, images, args = make(tiny, tmp_path, head="i")
    seen = []
    training.train_step(
        model,
        step(learning_rate=1e-3, epochs=8),
        dataset,
        images,
        args,
        0,
        tmp_path,
        lambda _, logs: seen.append(logs["val_accuracy"]),
    )
    assert len(set(seen)) > 1  # else the test says nothing
    val = common.batches(images["val"], dataset.splits["val"].labels, 16)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    assert model.evaluate(val, verbose=0, return_dict=True)["accuracy"] == pytest.approx(max(seen))


# Scripts ----------------------------------------------------------------------------------


def test_a_stepped_run_leaves_its_record(tiny, workdir, script, capsys):
    arguments = ("--data", tiny, "--head", "iii", "--unfreeze", "stepped", "--final-augment")
    script("finetune", *arguments, *FAST)
    out = capsys.readouterr().out
    assert out.count("TINY DATASET of the tests.") == 2
    assert "stepwise, then augmentation" in out  # the study's row beside ours
    assert "79.12%" in out
    run = only_run(workdir)
    assert run.name == "tiny-finetune-iii-stepped-final-augment"
    files = {path.name for path in run.iterdir()}
    records = {"config.json", "history.csv", "metrics.json", "curves.png"}
    assert files == records | {"model.keras", "model.keras.sha256", ".lock"}
    history = read_history(run)
    names = [name for name, _ in UNFREEZE["stepped"]]
    assert [row["trained"] for row in history] == [*names, "all, augmented"]
    assert [row["augment"] for row in history] == ["False"] * 3 + ["True"]
    assert {row["dataset"] for row in history} == {"tiny"}
    metrics = json.loads((run / "metrics.json").read_text())
    best = max(history, key=lambda row: float(row["val_accuracy"]))
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert metrics[key] == pytest.approx(float(best[key]))
    assert metrics["notice"] == "TINY DATASET of the tests."
    config = json.loads((run / "config.json").read_text())
    assert config["arguments"]["learning_rate"] == 1e-3
    assert config["dataset"]["fingerprint"] == load_dataset(tiny).fingerprint
    assert config["versions"]["keras"] == keras.__version__
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    # model.keras is the epoch that the metrics speak of
    dataset, images, _ = load_images(load_dataset(tiny), ("val",), 32)
    model = weights.load_model(run)
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    val = common.batches(images["val"], dataset.splits["val"].labels, 16)
    assert model.evaluate(val, verbose=0, return_dict=True)["accuracy"] == pytest.approx(
        metrics["val_accuracy"]
    )


def test_the_same_command_gives_the_same_figures_and_overwrites_nothing(tiny, workdir, script):
    for _ in range(2):
        script("finetune", "--data", tiny, "--head", "i", "--augment", *FAST)
    first, second = sorted((workdir / "runs").iterdir())
    assert [first.name, second.name] == ["tiny-finetune-i-none-augment", "tiny-finetune-i-none-augment-2"]
    one, two = ((run / "metrics.json").read_bytes() for run in (first, second))
    assert one == two
    script("finetune", "--data", tiny, "--head", "i", "--augment", *FAST, "--seed", "1", "--out", "other")
    assert (workdir / "other" / "metrics.json").read_bytes() != one


def test_a_named_folder_that_is_there_is_left_alone(tiny, workdir, script):
    (workdir / "mine").mkdir()
    (workdir / "mine" / "metrics.json").write_text("{}")
    with pytest.raises(BadInput, match="mine.*--out"):
        script("finetune", "--data", tiny, "--out", "mine", *FAST)
    assert (workdir / "mine" / "metrics.json").read_text() == "{}"


def test_augment_with_final_augment_is_refused(tiny, workdir, script):
    with pytest.raises(BadInput, match="--final-augment"):
        script("finetune", "--data", tiny, "--augment", "--final-augment")


def test_pretrained_convolutions_are_what_fine_tuning_starts_from(tiny, workdir, script):
    script("train_pretrained", "--data", tiny, "--top", "gap")
    run = only_run(workdir)
    assert run.name == "tiny-pretrained-gap"
    pretrained = weights.load_model(run)
    new = common.build_model(32, 4, "gap")
    weights.load_weights(new, "none", seed=0)
    conv = common.convolutions(new)
    assert changed(snapshot(new), pretrained) >= set(conv)  # it trained every one of them
    script("finetune", "--data", tiny, "--weights", run, "--out", "tuned", *FAST)
    tuned = weights.load_model(workdir / "tuned")
    for name in conv:
        for ours, theirs in zip(
            tuned.get_layer(name).get_weights(), pretrained.get_layer(name).get_weights()
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_bfloat16_run_is_trained_tested_and_taken_features_from(tiny, workdir, script):
    script("finetune", "--data", tiny, "--head", "iii", "--precision", "bfloat16", *FAST)
    run = only_run(workdir)
    model = weights.load_model(run)
    assert model.get_layer("block3_conv1").compute_dtype == "bfloat16"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    script("test_model", "--data", tiny, "--run", run)
    assert json.loads((run / "test" / "metrics.json").read_text())["images"] == 22
    flags = ("--data", tiny, "--model", run, "--layers", "last", "--splits", "val")
    script("extract_features", *flags, "--precision", "bfloat16")
    script("extract_features", *flags)
    one, two = (np.load(path) for path in sorted((workdir / "features").glob("*/val.npy")))
    assert one.dtype == two.dtype == np.float32
    assert 0 < np.linalg.norm(one - two) / np.linalg.norm(two) < 0.02


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--weights", "nowhere.h5"), "nowhere.h5"),
        (("--weights", "nowhere"), "nowhere"),
        (("--image-size", "16"), "at least 32"),
    ],
)
def test_bad_flags_end_before_a_run_begins(tiny, workdir, script, flags, message):
    with pytest.raises(BadInput, match=message):
        script("finetune", "--data", tiny, *flags)
    assert not (workdir / "runs").exists()


def test_tensorboard_is_written_or_its_package_named(tiny, workdir, script, monkeypatch):
    flags = ("--data", tiny, "--head", "i", "--tensorboard", "--out", "run", *FAST)
    with monkeypatch.context() as patch:
        patch.setattr(training, "find_spec", lambda package: None)
        with pytest.raises(BadInput, match="needs the package tensorboard"):
            script("finetune", *flags)
    assert not (workdir / "run").exists()
    if find_spec("tensorboard") and find_spec("tensorflow"):
        script("finetune", *flags)
        assert list((workdir / "run" / "tensorboard" / "step-1").rglob("events.*"))
