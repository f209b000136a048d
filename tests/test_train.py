"""Training in stages, and the scripts that do it: train.py, finetune.py, train_pretrained.py."""

import dataclasses
import json
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import narrow_vgg16, only_run, read_rows

import common
import finetune
from transfer import activations, recipes
from transfer import train as train_module
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.images import Rows, load_images
from transfer.study import UNFREEZE, fine_tuning_rows
from transfer.train import Checkpoint, Stage, new_optimizer, plan_stages, train_stage
from transfer.weights import load_model, load_weights, with_precision

FAST = ("--epochs", "1", "--fine-tune-epochs", "1")


def make(tiny, cache, head="iii", seed=0):
    """A network and the images that it is trained on."""
    keras.utils.set_random_seed(seed)
    dataset = load_images(load_dataset(tiny), ("train", "val"), 32, str(cache))
    model = common.build_model(32, 4, head)
    load_weights(model, "none", seed)
    return model, dataset


def stage(blocks=(), **settings):
    """A Stage of one epoch, or as `settings` say."""
    usual = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16, "seed": 0}
    return Stage("", blocks, **usual | settings)


def train(model, planned, dataset, folder, cache=None):
    """Train one Stage, remembered in the new folder `folder`; returns the rows of its history."""
    folder.mkdir(parents=True, exist_ok=True)
    resume = Checkpoint.read(folder)
    train_stage(model, planned, dataset, str(cache or folder), resume)
    return resume.history


def snapshot(model):
    return {
        layer.name: [w.copy() for w in layer.get_weights()]
        for layer in model.layers
        if layer.weights
    }


def changed(before, model):
    return {
        name
        for name, arrays in before.items()
        if any(np.any(a != b) for a, b in zip(arrays, model.get_layer(name).get_weights()))
    }


def test_each_step_changes_just_the_layers_it_names(tiny, tmp_path, narrow):
    model, dataset = make(tiny, tmp_path)
    head = {"batch_normalization", "fc1", "fc2", "fc3", "predictions"}
    for number, (name, blocks) in enumerate(UNFREEZE["stepped"]):
        before = snapshot(model)
        train(model, stage(blocks), dataset, tmp_path / str(number))
        conv = {name for name in common.convolutions(model) if name.split("_")[0] in blocks}
        assert changed(before, model) == head | conv, name
    assert conv == set(common.convolutions(model))


@pytest.mark.parametrize(
    ("head", "blocks", "layer", "precision"),
    [
        ("iii", (), "block5_pool", "float32"),
        ("iii", (), "block5_pool", "bfloat16"),
        ("iii", ("block4", "block5"), "block3_pool", "float32"),
        ("multilayer", (), "features", "float32"),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_training_on_cached_activations_equals_the_uncached_run(
    tiny, tmp_path, head, blocks, layer, precision
):
    def losses(cache, folder):
        model, dataset = make(tiny, tmp_path / "images", head=head)
        model = with_precision(model, precision)
        planned = stage(blocks, epochs=2, learning_rate=1e-4 if blocks else 1e-3)
        history = train(model, planned, dataset, folder, cache)
        return [(row["loss"], row["val_loss"]) for row in history], snapshot(model)

    cached, cached_weights = losses(tmp_path / "images", tmp_path / "cached")
    (found, _) = (tmp_path / "images").glob(f"*{layer}*.npy")
    value_size = found.stat().st_size / np.prod(np.load(found, mmap_mode="r").shape)
    assert round(value_size) == (2 if precision == "bfloat16" else 4)
    plain, plain_weights = losses("none", tmp_path / "plain")
    np.testing.assert_allclose(cached, plain, rtol=2e-4)
    for name, arrays in plain_weights.items():
        for ours, theirs in zip(cached_weights[name], arrays):
            np.testing.assert_allclose(ours, theirs, atol=3e-4)


def test_a_short_step_gives_batch_normalisation_the_statistics_of_its_images(
    tiny, tmp_path, narrow
):
    """Of its first averages, zeros and ones, a few updates at Keras' momentum would leave nearly all."""
    model, dataset = make(tiny, tmp_path, head="multilayer")
    features = keras.Model(model.input, model.get_layer("features").output)
    expected = features.predict(dataset.splits["train"].images, verbose=0)
    train(model, stage(schedule="cosine"), dataset, tmp_path / "run")
    layer = model.get_layer("batch_normalization")
    mean, spread = expected.mean(0), expected.std(0)
    used = spread > 1e-3
    assert np.median(np.abs(layer.moving_mean - mean)[used] / spread[used]) < 0.5
    assert layer.momentum == 0.99  # what is saved is Keras' own


def test_the_layer_wise_head_sees_what_changes_in_any_block(tiny, tmp_path, narrow):
    """Its frozen blocks give something to the head beside what they give to the next block."""
    model, dataset = make(tiny, tmp_path / "images", head="multilayer")
    before = snapshot(model)
    train(model, stage(("block4", "block5")), dataset, tmp_path / "run", tmp_path / "images")
    assert not list((tmp_path / "images").glob("*block3_pool*"))
    head = {"batch_normalization", "predictions"}
    blocks = {name for name in common.convolutions(model) if name.startswith(("block4", "block5"))}
    assert changed(before, model) == head | blocks


def test_activations_are_kept_only_where_there_is_room(tiny, tmp_path, narrow, monkeypatch, capsys):
    model, dataset = make(tiny, tmp_path / "images", head="i")
    cache = tmp_path / "images"
    with monkeypatch.context() as patch:
        patch.setattr(activations, "MAX_DISK_SHARE", 0)
        train(model, stage(), dataset, tmp_path / "1", cache)
    assert "too much, so each epoch computes them again" in capsys.readouterr().out
    assert not list((tmp_path / "images").glob("*pool*.npy"))
    train(model, stage(), dataset, tmp_path / "2", cache)
    assert "The activations of block5_pool, computed once, take 0.00 GB" in capsys.readouterr().out
    train(model, stage(), dataset, tmp_path / "3", cache)
    assert "activations" not in capsys.readouterr().out  # they are there and take nothing more


def test_activation_cache_follows_the_weights(tiny, tmp_path, narrow):
    for number, seed in enumerate((0, 1, 0)):
        model, dataset = make(tiny, tmp_path, seed=seed)
        train(model, stage(), dataset, tmp_path / str(number), tmp_path)
    assert len(list(tmp_path.glob("*-train-*block5_pool*.npy"))) == 2


def test_callbacks_stop_on_val_loss_and_keep_the_best_val_accuracy():
    stop, checkpoint = common.training_callbacks()
    assert isinstance(stop, keras.callbacks.EarlyStopping)
    assert (stop.monitor, stop.patience) == ("val_loss", 20)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    checkpoint.set_model(model)
    for number, accuracy in enumerate((0.5, 0.7, 0.6, 0.7)):
        model.set_weights([np.full((1, 1), number, "float32")])
        checkpoint.on_epoch_end(number, {"val_accuracy": accuracy})
    assert checkpoint.weights == [[[1.0]]]  # a copy; of equals the first


def test_weights_are_written_as_often_as_time_allows(tmp_path, monkeypatch):
    """An epoch a second; each writing takes two, so the next is due forty seconds later."""
    clock, model = [100.0], keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    monkeypatch.setattr("transfer.train.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def slowly(path):
        clock[0] += 1

    monkeypatch.setattr("transfer.train.sync", slowly)
    model.compile("adam", "mse")
    model.stop_training = False
    resume, written = Checkpoint.read(tmp_path), {}
    for epoch in range(90):
        clock[0] += 1
        row = {"val_accuracy": epoch / 100}  # always a better one
        resume.end_epoch(model, model, row, model.get_weights())
        state = json.loads((tmp_path / "resume" / "state.json").read_text())
        written[len(state["history"])] = {state["last"], state["best"], "state.json"}
        assert {path.name for path in (tmp_path / "resume").iterdir()} == list(written.values())[-1]
    assert list(written) == [1, 41, 81]
    assert len(read_rows(tmp_path / "history.csv")) == 90


def test_a_step_ends_with_the_weights_of_its_best_val_accuracy(tiny, tmp_path, narrow):
    model, dataset = make(tiny, tmp_path, head="i")
    history = train(model, stage(learning_rate=1e-3, epochs=8), dataset, tmp_path / "run")
    seen = [row["val_accuracy"] for row in history]
    assert len(set(seen)) > 1  # else the test says nothing
    assert evaluate(model, dataset) == pytest.approx(max(seen))


def evaluate(model, dataset):
    """Keras' own accuracy on the validation split."""
    x = np.array(dataset.splits["val"].images[:])
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model.evaluate(x, dataset.splits["val"].labels, verbose=0, return_dict=True)["accuracy"]


def test_a_log_file_gets_a_line_now_and_then_within_an_epoch(
    tiny, tmp_path, narrow, monkeypatch, capsys
):
    monkeypatch.setattr("transfer.console.LINE_EVERY", 0)
    monkeypatch.setattr("transfer.console.SHOWN_AFTER", 0)
    model, dataset = make(tiny, tmp_path, head="gap")
    train(model, stage(), dataset, tmp_path / "run")
    errors = capsys.readouterr().err
    assert re.search(r"^epoch 1: 16 of 32 images, .*images/s, .* left$", errors, re.MULTILINE)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("settings", [{}, {"blocks": ("block5",), "augment": True}])
def test_several_steps_at_once_train_the_same(tiny, tmp_path, monkeypatch, capsys, settings):
    monkeypatch.setattr("transfer.console.LINE_EVERY", 0)
    monkeypatch.setattr("transfer.console.SHOWN_AFTER", 0)

    def trained(folder):
        model, dataset = make(tiny, tmp_path / "images", head="gap")
        history = train(model, stage(batch_size=5, epochs=2, **settings), dataset, folder)
        lines = re.findall(r"epoch 2: (\d+) of 32 images", capsys.readouterr().err)
        return history, snapshot(model), {int(count) for count in lines}

    history, arrays, seen = trained(tmp_path / "single")
    assert {5, 10, 15} <= seen
    monkeypatch.setattr("transfer.train.STEPS_PER_EXECUTION", 3)
    monkeypatch.setattr("transfer.train.accelerators", lambda backend: ["a GPU"])
    history_at_once, arrays_at_once, seen = trained(tmp_path / "at-once")
    assert seen - {0} == {15, 30, 32}  # of seven batches; Keras looked after three, six and all
    assert history_at_once == history
    for name, of_layer in arrays.items():
        for one, other in zip(arrays_at_once[name], of_layer):
            np.testing.assert_array_equal(one, other)


def test_a_large_head_alone_is_compiled_by_xla_and_trains_the_same(
    tiny, tmp_path, narrow, monkeypatch
):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the others decide for themselves")
    model, dataset = make(tiny, tmp_path)
    parts = [common.split_model(model, "block5_pool")[1], common.augmented_model(model)]
    histories = []
    for most in (10**9, 1):
        monkeypatch.setattr("transfer.train.LARGE_MODEL", most)
        for part in parts:
            train_module.compile_stage(part, stage(), 2, common.Share())
        assert [part.jit_compile for part in parts] == [most == 1, False]
        fresh, _ = make(tiny, tmp_path)
        histories.append(train(fresh, stage(epochs=3), dataset, tmp_path / str(most), tmp_path))
    for ours, theirs in zip(*histories):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@pytest.mark.parametrize("augment", [False, True])
def test_workers_draw_a_large_part_s_batches_and_change_nothing(
    tiny, tmp_path, narrow, monkeypatch, augment
):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the others have no thread that tunes the input")
    drawn, histories, original = [], [], train_module.stage_batches

    def remembered(*given):
        drawn.extend(original(*given))
        return drawn[-2:]

    monkeypatch.setattr(train_module, "stage_batches", remembered)
    for most in (10**9, 1):
        monkeypatch.setattr("transfer.train.LARGE_MODEL", most)
        model, dataset = make(tiny, tmp_path)
        unfrozen = stage(("block5",), epochs=3, augment=augment)
        histories.append(train(model, unfrozen, dataset, tmp_path / str(most), tmp_path))
    assert [batches.workers for batches in drawn] == [1, 1, 2, 2]
    assert histories[0] == histories[1]


def test_a_stepped_run_leaves_its_record(tiny, workdir, script, capsys, monkeypatch):
    narrow_vgg16(monkeypatch)
    arguments = ("--data", tiny, "--head", "iii", "--unfreeze", "stepped", "--final-augment")
    script("finetune", *arguments, *FAST)
    out = capsys.readouterr().out
    assert out.count("TINY DATASET of the tests.") == 2
    assert "stepwise, then augmentation" in out  # the study's row beside ours
    assert "79.12%" in out
    run = only_run(workdir)
    assert run.name == "tiny-finetune-iii-stepped-final-augment"
    files = {path.name for path in run.iterdir()}
    assert files == {"config.json", "history.csv", "metrics.json", "curves.png", "model.keras"}
    history = read_rows(run / "history.csv")
    names = [name for name, _ in UNFREEZE["stepped"]]
    assert [row["trained"] for row in history] == [*names, "all, augmented"]
    assert [row["augmented"] for row in history] == ["False"] * 3 + ["True"]
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
    dataset = load_images(load_dataset(tiny), ("val",), 32)
    assert evaluate(load_model(run), dataset) == pytest.approx(metrics["val_accuracy"])


def test_the_same_command_gives_the_same_figures_and_overwrites_nothing(
    tiny, workdir, narrow, script
):
    for _ in range(2):
        script("finetune", "--data", tiny, "--head", "i", "--augment", *FAST)
    first, second = sorted((workdir / "runs").glob("[!.]*"))
    assert [first.name, second.name] == [
        "tiny-finetune-i-none-augment",
        "tiny-finetune-i-none-augment-2",
    ]
    one, two = ((run / "metrics.json").read_bytes() for run in (first, second))
    assert one == two
    script(
        "finetune",
        "--data",
        tiny,
        "--head",
        "i",
        "--augment",
        *FAST,
        "--seed",
        "1",
        "--out",
        "other",
    )
    assert (workdir / "other" / "metrics.json").read_bytes() != one


def test_pretrained_convolutions_are_what_fine_tuning_starts_from(tiny, workdir, narrow, script):
    script("train_pretrained", "--data", tiny, "--top", "gap")
    run = only_run(workdir)
    assert run.name == "tiny-pretrained-gap"
    pretrained = load_model(run)
    new = common.build_model(32, 4, "gap")
    load_weights(new, "none", seed=0)
    conv = common.convolutions(new)
    assert changed(snapshot(new), pretrained) >= set(conv)  # it trained every one of them
    script("finetune", "--data", tiny, "--weights", run, "--out", "tuned", *FAST)
    tuned = load_model(workdir / "tuned")
    for name in conv:
        for ours, theirs in zip(
            tuned.get_layer(name).get_weights(), pretrained.get_layer(name).get_weights()
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_bfloat16_run_is_trained_tested_and_taken_features_from(tiny, workdir, narrow, script):
    script("finetune", "--data", tiny, "--head", "iii", "--precision", "bfloat16", *FAST)
    run = only_run(workdir)
    model = load_model(run)
    assert model.get_layer("block3_conv1").compute_dtype == "bfloat16"
    assert model.get_layer("predictions").compute_dtype == "float32"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    script("test_model", "--data", tiny, "--run", run)
    assert json.loads((run / "test" / "metrics.json").read_text())["images"] == 22
    flags = ("--data", tiny, "--weights", run, "--layers", "last")
    script("extract_features", *flags, "--precision", "bfloat16")
    script("extract_features", *flags)
    one, two = (np.load(path) for path in sorted((workdir / "features").glob("*/val.npy")))
    assert one.dtype == two.dtype == np.float32
    assert 0 < np.linalg.norm(one - two) / np.linalg.norm(two) < 0.02


def test_the_studys_recipe_is_what_the_flags_were_before():
    args = vars(finetune.parse_args([]))
    keys = ("recipe", "head", "unfreeze", "augment", "schedule")
    assert [args[key] for key in keys] == ["study", "iii", "none", False, "constant"]
    assert len(fine_tuning_rows(args)) == 2


def test_flags_override_the_recipe():
    strong = vars(finetune.parse_args(["--recipe", "strong"]))
    assert {key: strong[key] for key in recipes.RECIPES["strong"]} == recipes.RECIPES["strong"]
    assert fine_tuning_rows(strong) == []
    assert fine_tuning_rows(vars(finetune.parse_args(["--schedule", "cosine"]))) == []
    args = finetune.parse_args(["--recipe", "strong", "--schedule", "constant", "--head", "i"])
    assert (args.schedule, args.head) == ("constant", "i")
    with pytest.raises(BadInput, match="--final-augment"):
        finetune.parse_args(["--recipe", "strong", "--final-augment"])
    with pytest.raises(BadInput, match="--final-augment"):
        finetune.parse_args(["--augment", "--final-augment"])


def test_frozen_and_unfrozen_steps_have_rates_and_epochs_of_their_own():
    given = [
        "--augment",
        "--unfreeze",
        "all",
        "--learning-rate",
        "1",
        "--fine-tune-learning-rate",
        "0.1",
    ]
    args = finetune.parse_args(given)
    vars(args).update(epochs=1, fine_tune_epochs=2, batch_size=16)
    dense, everything = plan_stages(args)
    assert (dense.augment, dense.learning_rate, dense.epochs) == (True, 1, 1)
    assert (everything.augment, everything.learning_rate, everything.epochs) == (True, 0.1, 2)


def test_a_cosine_rises_and_falls_to_nothing():
    planned = stage(learning_rate=0.4, epochs=10, schedule="cosine")
    optimizer = new_optimizer(planned, 10)
    rates = [float(optimizer._learning_rate(update)) for update in range(101)]
    assert rates[:11] == pytest.approx(np.linspace(0, 0.4, 11))
    expected = 0.2 * (1 + np.cos(np.pi * np.arange(91) / 90))
    assert rates[10:] == pytest.approx(expected, abs=1e-6)
    one = new_optimizer(dataclasses.replace(planned, epochs=1), 1)  # too short for a warm-up
    assert float(one._learning_rate(0)) == pytest.approx(0.4)


def test_a_training_that_diverges_ends_with_a_sentence_and_keeps_nothing(
    tiny, workdir, narrow, script
):
    command = ("finetune", "--data", tiny, "--head", "iii", "--unfreeze", "all", "--epochs", "2")
    for _ in range(2):  # the same command again ends in the same way
        with pytest.raises(BadInput, match=r"diverged in epoch 1 .*nan.*lower --learning-rate"):
            script(*command, "--fine-tune-learning-rate", "1e30", "--fine-tune-epochs", "2")
    run = only_run(workdir)
    assert not (run / "metrics.json").exists()
    load_model(run / "model.keras")  # of the first stage; it holds numbers
    assert len(read_rows(run / "history.csv")) == 2


@pytest.mark.parametrize("room", [True, False])
def test_a_resumed_step_goes_on_in_the_way_it_began(
    tiny, workdir, narrow, script, monkeypatch, room
):
    """On activations or on images, though the disk has no room by now, or has it again."""
    command = ("finetune", "--data", tiny, "--head", "iii", "--epochs", "3")
    monkeypatch.setattr(activations, "MAX_DISK_SHARE", room)
    script(*command, "--out", "whole")
    end_epoch = Checkpoint.end_epoch

    def stop(self, *given):
        end_epoch(self, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "end_epoch", stop)
        script(*command, "--out", "cut")
    assert (
        json.loads((workdir / "cut" / "resume" / "state.json").read_text())["activations"] == room
    )
    for path in workdir.glob("data/cache/*pool*"):
        path.unlink()
    monkeypatch.setattr(activations, "MAX_DISK_SHARE", not room)
    script(*command, "--out", "cut")
    assert (workdir / "cut" / "history.csv").read_bytes() == (
        workdir / "whole" / "history.csv"
    ).read_bytes()


def test_balanced_classes_count_alike(tiny, tmp_path, narrow):
    labels = np.array([0] * 12 + [1] * 3 + [2])
    batches = common.Batches(np.zeros((16, 2)), labels, 16, seed=0)
    batches.class_weights = np.array([16 / 36, 16 / 9, 16 / 3], "float32")
    _, y, weights = batches[0]
    assert [weights[y == label].sum() for label in range(3)] == pytest.approx([16 / 3] * 3)
    shared = common.Batches(
        np.zeros((16, 2)), labels, 10, share=common.Share(4, whole_batches=True)
    )
    shared.class_weights = batches.class_weights
    assert shared[1][2] == pytest.approx([16 / 36] * 2 + [16 / 9] * 3 + [16 / 3, 0, 0])
    model, dataset = make(tiny, tmp_path)
    rows = np.concatenate(
        [np.flatnonzero(dataset.splits["train"].labels == n)[: 8 - 2 * n] for n in range(4)]
    )
    split = dataset.splits["train"]
    fewer = split.take(rows)._replace(images=Rows(split.images, rows))
    unequal = dataclasses.replace(dataset, splits={**dataset.splits, "train": fewer})
    before = model.get_weights()
    losses = []
    for balanced in (False, True):
        model.set_weights(before)
        losses.append(
            train(model, stage(balanced=balanced), unequal, tmp_path / str(balanced))[0]["loss"]
        )
    assert losses[0] != losses[1]
