"""recipes.py: the study's recipe, the strong one, and what the strong one is made of."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from test_finetune import make, snapshot, step, train
from test_interrupts import Unplugged, assert_same, outcome, unplug_at

import common
import finetune
from transfer import recipes, resume, training
from transfer.screen import BadInput
from transfer.study import AUGMENTATION


def test_the_studys_recipe_is_what_the_flags_were_before():
    args = vars(finetune.parse_args([]))
    for key, value in {
        "recipe": "study",
        "head": "iii",
        "unfreeze": "none",
        "augment": False,
        "optimizer": "adam",
        "schedule": "constant",
        "label_smoothing": 0,
        "average_weights": False,
    }.items():
        assert args[key] == value, key
    assert len(recipes.fine_tuning_rows(args)) == 2


def test_flags_override_the_recipe():
    strong = vars(finetune.parse_args(["--recipe", "strong"]))
    assert {key: strong[key] for key in recipes.RECIPES["strong"]} == recipes.RECIPES["strong"]
    assert recipes.fine_tuning_rows(strong) == []
    flags = ["--recipe", "strong", "--schedule", "constant", "--head", "i"]
    args = finetune.parse_args(flags)
    assert (args.schedule, args.head) == ("constant", "i")
    with pytest.raises(BadInput, match="--final-augment"):
        finetune.parse_args(["--recipe", "strong", "--final-augment"])
    with pytest.raises(SystemExit):
        finetune.parse_args(["--label-smoothing", "2"])


def test_an_ingredient_alone_is_no_row_of_the_studys():
    assert recipes.fine_tuning_rows(vars(finetune.parse_args(["--schedule", "cosine"]))) == []


def test_the_light_augmentation_waits_for_the_convolutions():
    flags = ["--augment", "--augmentation", "light", "--unfreeze", "all", "--learning-rate", "1"]
    args = finetune.parse_args([*flags, "--fine-tune-learning-rate", "0.1"])
    vars(args).update(epochs=1, fine_tune_epochs=2, batch_size=16)
    dense, everything = recipes.plan_steps(args)
    assert (dense.augmentation, dense.learning_rate, dense.epochs) == ("none", 1, 1)
    assert (everything.augmentation, everything.learning_rate, everything.epochs) == ("light", 0.1, 2)


def test_a_cosine_rises_and_falls_to_nothing():
    planned = step(optimizer="sgd", learning_rate=0.4, epochs=10, schedule="cosine")
    optimizer = recipes.new_optimizer(planned, 10)
    rates = [float(optimizer._learning_rate(update)) for update in range(101)]
    assert rates[:11] == pytest.approx(np.linspace(0, 0.4, 11))
    expected = 0.2 * (1 + np.cos(np.pi * np.arange(91) / 90))
    assert rates[10:] == pytest.approx(expected, abs=1e-6)
    one = recipes.new_optimizer(dataclasses.replace(planned, epochs=1), 1)  # too short for a warm-up
    assert float(one._learning_rate(0)) == pytest.approx(0.4)


def test_the_light_augmentation_is_gentler_in_every_range():
    for key, value in recipes.AUGMENTATIONS["light"].items():
        assert value == AUGMENTATION[key] or value < AUGMENTATION[key]
    draws = [
        common.draw_augmentation(np.random.default_rng(n), 100, 100, recipes.AUGMENTATIONS["light"])
        for n in range(200)
    ]
    assert 3 < max(abs(draw["theta"]) for draw in draws) <= 5
    assert 3 < max(abs(draw["tx"]) for draw in draws) <= 5


def test_the_kept_weights_are_the_moving_average_and_training_goes_on_from_the_last(
    tiny, tmp_path, narrow, monkeypatch
):
    model, dataset = make(tiny, tmp_path, head="gap")
    seen, last = [], []
    original = training.training_callbacks

    def spy(*given):
        def after_batch(batch, logs):
            seen.append([w.copy() for w in spying.model.get_weights()])

        spying = keras.callbacks.LambdaCallback(on_train_batch_end=after_batch)
        return [spying, *original(*given)]

    monkeypatch.setattr(training, "training_callbacks", spy)
    remember = resume.Resume.end_epoch
    monkeypatch.setattr(
        resume.Resume, "end_epoch", lambda *given: last.extend(given[1].get_weights()) or remember(*given)
    )
    planned = step(learning_rate=1e-2, batch_size=8, average_weights=True)  # 4 updates
    train(model, planned, dataset, tmp_path / "run")
    kept = model.get_layer("predictions").get_weights()
    momentum = 1 - 1 / 4
    average = seen[0]
    for arrays in seen[1:]:
        average = [momentum * a + (1 - momentum) * w for a, w in zip(average, arrays)]
    for ours, expected in zip(kept, average):
        assert ours == pytest.approx(expected, abs=1e-5)
    for ours, expected in zip(last, seen[-1]):
        assert ours == pytest.approx(expected, abs=1e-6)
    assert np.abs(kept[0] - last[0]).max() > 1e-4


def test_smoothed_labels_change_the_loss_as_they_should(tiny, tmp_path, narrow):
    losses = {}
    for smoothing in (0.0, 0.3):
        model, dataset = make(tiny, tmp_path, head="gap")
        before = snapshot(model)["predictions"]
        planned = step(learning_rate=1e-12, label_smoothing=smoothing)
        (row,) = train(model, planned, dataset, tmp_path / str(smoothing))
        losses[smoothing] = row["val_loss"]
        for ours, expected in zip(model.get_layer("predictions").get_weights(), before):
            assert ours == pytest.approx(expected, abs=1e-6)
    val = dataset.splits["val"]
    x = keras.applications.vgg16.preprocess_input(val.images[np.arange(12)].astype("float32"))
    logs = np.log(np.asarray(model.predict_on_batch(x)))
    true = np.eye(4)[val.labels]
    for smoothing, loss in losses.items():
        target = true * (1 - smoothing) + smoothing / 4
        assert loss == pytest.approx(-(target * logs).sum(axis=1).mean(), rel=1e-3)


@pytest.mark.slow
def test_an_interrupted_run_with_every_ingredient_ends_as_one_that_was_not(
    tiny, workdir, narrow, script, monkeypatch
):
    flags = ("--data", tiny, "--recipe", "strong", "--unfreeze", "block4", "--optimizer", "adamw")
    flags += ("--augment", "--augmentation", "light", "--label-smoothing", "0.1")
    flags += ("--average-weights", "--epochs", "1", "--fine-tune-epochs", "2")
    script("finetune", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", 3, False)  # after the first epoch of the second step
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    script("finetune", "--resume", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))
    rows = (workdir / "whole" / "history.csv").read_text()
    assert ",light," in rows
    config = json.loads((workdir / "whole" / "config.json").read_text())
    assert config["steps"][1]["label_smoothing"] == 0.1


def test_mirror_images_are_looked_at_where_flips_says(tiny, in_runs, script):
    """The run's probabilities with --flips are the mean of those of each picture and its mirror image."""
    from transfer.images import decode_image
    from transfer.weights import load_model

    run = in_runs / "runs" / "tiny-finetune-i-none"
    script("test_model", "--run", run, "--data", tiny, "--flips")
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert metrics["flips"] is True
    model = load_model(run)
    first = (run / "test" / "predictions.csv").read_text().splitlines()[1].split(",")
    image = decode_image(tiny / "data_256" / first[0], 32)
    x = keras.applications.vgg16.preprocess_input(np.stack([image, image[:, ::-1]]).astype("float32"))
    expected = np.asarray(model.predict_on_batch(x)).mean(axis=0)
    assert float(first[4]) == pytest.approx(expected.max(), abs=1e-4)
