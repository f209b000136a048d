"""Why a run says what it says: explain.py."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import read_rows

from common import build_model
from transfer import explain, plots
from transfer.backend import keras
from transfer.images import decode_all
from transfer.weights import load_weights

NETWORK = "runs/tiny-finetune-i-none"
FOREST = "runs/tiny-forest-none-all-trees12-leaf2"


def network_and_images(tiny, head):
    """A network with this head, and two images for it."""
    model = build_model(32, 4, head, seed=0)
    load_weights(model, "none", 0)
    names = ("test.0.0.jpeg", "test.1.0.jpeg")
    images, _ = decode_all([tiny / "data_256" / name for name in names], 32)
    return model, images


def test_grad_cam_is_the_weighted_sum_of_the_last_activations(tiny, narrow):
    """Here the mean gradient of a channel is its weight, but for one factor."""
    base, images = network_and_images(tiny, "gap")
    last = base.get_layer("block5_conv3").output
    greatest = keras.layers.GlobalMaxPooling2D()(last)
    dense = keras.layers.Dense(4, "softmax", name="predictions")
    model = keras.Model(base.input, dense(greatest))

    maps = explain.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.max() == 1  # else the test says nothing

    weights, _ = dense.get_weights()
    lower = keras.Model(base.input, [last, model.output])
    for found, activations, answer in zip(maps, *lower.predict_on_batch(images)):
        chosen = answer.argmax()
        expected = np.maximum(activations @ weights[:, chosen], 0)
        assert found == pytest.approx(expected / max(expected.max(), 1e-12), abs=1e-3)


def test_with_the_head_multilayer_all_convolutions_add_up_to_the_score(
    tiny, narrow, tmp_path, monkeypatch, capsys
):
    model, images = network_and_images(tiny, "multilayer")
    rng = np.random.default_rng(0)
    norm = model.get_layer("batch_normalization")
    softmax = model.get_layer("predictions")
    for layer in (norm, softmax):
        shapes = [array.shape for array in layer.get_weights()]
        layer.set_weights([rng.uniform(0.5, 2, shape) for shape in shapes])

    # a softmax's logarithms differ as its scores do: those above the mean image's
    answers = model.predict_on_batch(images)
    chosen = answers.argmax(axis=1)
    mean_answer = softmax(norm(norm.moving_mean[None])).numpy()
    scores = np.log(answers / mean_answer)
    above_others = scores[range(2), chosen] - scores.mean(axis=1)

    _, added = explain.all_layers_map(model, images)
    assert added.sum(axis=0) == pytest.approx(above_others, rel=1e-3)

    # where some of the last one's channels decide alone, the map is what they give
    kernel = np.zeros_like(softmax.kernel)
    kernel[-9:, chosen] = 1
    softmax.set_weights([kernel, np.zeros(4)])
    ones = np.ones(len(kernel))
    norm.set_weights([ones, ones, 0 * ones, ones])
    maps, added = explain.all_layers_map(model, images)

    last = keras.Model(model.input, model.get_layer("block5_conv3").output)
    alone = last.predict_on_batch(images)[..., -9:].sum(axis=-1)
    assert maps == pytest.approx(alone / alone.max(axis=(1, 2), keepdims=True), rel=1e-3)
    assert not added[:-1].any()

    # and the last one makes all of the score, which is said
    monkeypatch.setattr(explain, "load_model", lambda _: model)
    run = SimpleNamespace(is_network=True, folder=tmp_path, image_size=32)
    picture = tiny / "data_256" / "test.0.0.jpeg"
    explain.explain_pictures(tmp_path, run, {picture: [("Bronze", 0.5)]}, None)
    explain.explain_pictures(tmp_path, run, {}, None)  # no mistakes
    assert capsys.readouterr().out.count("makes 100.00% of the scores") == 1


@pytest.mark.slow
def test_explanations_are_drawn(tiny, in_runs, script, capsys):
    picture = tiny / "data_256" / "test.0.0.jpeg"
    for run in (NETWORK, FOREST):
        script("test_model", "--run", run, "--explain", "--predict", picture)

    assert (in_runs / NETWORK / "predicted" / "explained" / "0001-test.0.0.png").exists()
    assert (in_runs / FOREST / "predicted" / "layer_importance.csv").exists()
    assert "Grad-CAM is for networks" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gallery_shows_the_most_confident_mistakes(tiny, in_runs, script, monkeypatch):
    plot = Mock()
    monkeypatch.setattr(plots, "plot_gallery", plot)
    script("test_model", "--run", NETWORK, "--data", tiny, "--explain")
    path, mistakes, _, notice = plot.call_args.args
    assert notice == "TINY DATASET of the tests."

    rows = read_rows(path.with_name("predictions.csv"))
    wrong = [row for row in rows if row["true"] != row["predicted_1"]]
    wrong.sort(key=lambda row: -float(row["probability_1"]))
    shown = [picture.name for picture, *_ in mistakes]
    assert shown == [row["file"] for row in wrong]
    assert len(list(path.with_name("explained").iterdir())) == len(wrong)


def test_importance_is_the_sum_over_a_layers_features():
    columns = {"a": [0, 1], "b": [1, 4]}
    forest = SimpleNamespace(feature_importances_=np.array([1, 2, 3, 4]))
    linear = SimpleNamespace(coef_=np.array([[1, -2, 0, 0], [0, 0, -3, 4]]))
    for classifier in (forest, linear):
        shares = explain.layer_importance([classifier], columns, "b,a")
        assert shares == [("a", 0.1, 0.25), ("b", 0.9, 0.75)]
