"""recipes.py: the study's recipe, the strong one, and what the strong one is made of."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from test_finetune import step
from test_interrupts import Unplugged, assert_same, outcome, unplug_at

import finetune
from transfer import recipes
from transfer.screen import BadInput


def test_the_studys_recipe_is_what_the_flags_were_before():
    args = vars(finetune.parse_args([]))
    for key, value in {
        "recipe": "study",
        "head": "iii",
        "unfreeze": "none",
        "augment": False,
        "optimizer": "adam",
        "schedule": "constant",
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


def test_an_ingredient_alone_is_no_row_of_the_studys():
    assert recipes.fine_tuning_rows(vars(finetune.parse_args(["--schedule", "cosine"]))) == []


def test_frozen_and_unfrozen_steps_have_rates_and_epochs_of_their_own():
    flags = ["--augment", "--unfreeze", "all", "--learning-rate", "1", "--fine-tune-learning-rate", "0.1"]
    args = finetune.parse_args(flags)
    vars(args).update(epochs=1, fine_tune_epochs=2, batch_size=16)
    dense, everything = recipes.plan_steps(args)
    assert (dense.augment, dense.learning_rate, dense.epochs) == (True, 1, 1)
    assert (everything.augment, everything.learning_rate, everything.epochs) == (True, 0.1, 2)


def test_a_cosine_rises_and_falls_to_nothing():
    planned = step(optimizer="sgd", learning_rate=0.4, epochs=10, schedule="cosine")
    optimizer = recipes.new_optimizer(planned, 10)
    rates = [float(optimizer._learning_rate(update)) for update in range(101)]
    assert rates[:11] == pytest.approx(np.linspace(0, 0.4, 11))
    expected = 0.2 * (1 + np.cos(np.pi * np.arange(91) / 90))
    assert rates[10:] == pytest.approx(expected, abs=1e-6)
    one = recipes.new_optimizer(dataclasses.replace(planned, epochs=1), 1)  # too short for a warm-up
    assert float(one._learning_rate(0)) == pytest.approx(0.4)


@pytest.mark.slow
def test_an_interrupted_run_with_every_ingredient_ends_as_one_that_was_not(
    tiny, workdir, narrow, script, monkeypatch
):
    flags = ("--data", tiny, "--recipe", "strong", "--unfreeze", "block4", "--optimizer", "adamw")
    flags += ("--augment", "--epochs", "1", "--fine-tune-epochs", "2")
    script("finetune", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", 3, False)  # after the first epoch of the second step
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    script("finetune", "--resume", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))
    rows = (workdir / "whole" / "history.csv").read_text()
    assert ",True," in rows
    config = json.loads((workdir / "whole" / "config.json").read_text())
    assert [step["optimizer"] for step in config["steps"]] == ["adamw"] * 2


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
