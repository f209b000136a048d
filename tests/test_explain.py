"""Why a run says what it says: explain.py."""

from types import SimpleNamespace

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


def slopes_of_head_i(model, activations, chosen):
    """How a class's score grows with each channel but for one factor: head i, in NumPy."""
    w1, b1, w2, b2, w3, _ = model.get_weights()[-6:]
    pooled = activations.max(axis=(0, 1))
    first = np.maximum(pooled @ w1 + b1, 0)
    second = np.maximum(first @ w2 + b2, 0)

    by_second = w3[:, chosen] * (second > 0)
    by_first = (w2 @ by_second) * (first > 0)
    return w1 @ by_first


def network_and_images(tiny, head):
    """A network with this head, and two images for it."""
    keras.utils.set_random_seed(0)
    model = build_model(32, 4, head)
    load_weights(model, "none", 0)
    images, _ = decode_all([tiny / "data_256" / f"test.{row}.0.jpeg" for row in range(2)], 32)
    return model, images


def test_grad_cam_is_the_weighted_sum_of_the_last_activations(tiny, narrow):
    model, images = network_and_images(tiny, "i")
    maps = explain.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.max() == 1  # else the test says nothing

    # the oracle
    last = model.get_layer("block5_conv3").output
    lower = keras.Model(model.input, [last, model.output])
    for found, activations, answer in zip(maps, *lower.predict_on_batch(images)):
        slopes = slopes_of_head_i(model, activations, answer.argmax())
        expected = np.maximum(activations @ slopes, 0)
        assert found == pytest.approx(expected / max(expected.max(), 1e-12), abs=1e-3)


def test_with_the_head_multilayer_all_convolutions_add_up_to_the_score(
    tiny, narrow, tmp_path, monkeypatch, capsys
):
    model, images = network_and_images(tiny, "multilayer")
    rng = np.random.default_rng(0)
    norm = model.get_layer("batch_normalization")
    softmax = model.get_layer("predictions")
    for layer in (norm, softmax):
        layer.set_weights([rng.uniform(0.5, 2, array.shape) for array in layer.get_weights()])

    def scores(means):
        logarithms = np.log(softmax(norm(means)).numpy())
        return logarithms - logarithms.mean(axis=1, keepdims=True)

    outputs = [model.get_layer(name).output for name in ("features", "block5_conv3")]
    means, activations = keras.Model(model.input, outputs).predict_on_batch(images)
    above = scores(means) - scores(norm.moving_mean[None])
    chosen = scores(means).argmax(axis=1)
    _, added = explain.all_layers_map(model, images)
    assert added.sum(axis=0) == pytest.approx(above[range(2), chosen], rel=1e-3)

    # where a block of the last one's channels decides alone, the map is what they give
    kernel = np.zeros_like(softmax.kernel)
    kernel[-9:, chosen] = 1
    softmax.set_weights([kernel, softmax.bias.numpy() * 0])
    norm.set_weights([*(np.ones((2, len(kernel)))), np.zeros(len(kernel)), np.ones(len(kernel))])
    maps, added = explain.all_layers_map(model, images)
    alone = activations[..., -9:].sum(axis=-1)
    assert maps == pytest.approx(alone / alone.max(axis=(1, 2), keepdims=True), rel=1e-3)
    assert not added[:-1].any()

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

    (drawn,) = (in_runs / NETWORK / "predicted" / "explained").iterdir()
    assert drawn.name == "0001-test.0.0.png"
    assert (in_runs / FOREST / "predicted" / "layer_importance.csv").exists()
    assert "Grad-CAM is for networks" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gallery_shows_the_most_confident_mistakes(tiny, in_runs, script, monkeypatch):
    galleries = []
    monkeypatch.setattr(plots, "plot_gallery", lambda *given: galleries.append(given))
    script("test_model", "--run", NETWORK, "--data", tiny, "--explain")
    ((path, mistakes, _, notice),) = galleries
    assert notice == "TINY DATASET of the tests."

    rows = read_rows(path.with_name("predictions.csv"))
    wrong = [row for row in rows if row["true"] != row["predicted_1"]]
    wrong.sort(key=lambda row: -float(row["probability_1"]))
    shown = [picture.name for picture, *_ in mistakes]
    assert shown == [row["file"] for row in wrong]
    assert len(list(path.with_name("explained").iterdir())) == len(wrong)


@pytest.mark.parametrize(
    "weights",
    [
        {"feature_importances_": np.array([1, 2, 3, 4])},
        {"coef_": np.array([[1, -2, 0, 0], [0, 0, -3, 4]])},
    ],
)
def test_importance_is_the_sum_over_a_layers_features(weights):
    pipeline = [SimpleNamespace(**weights)]
    shares = explain.layer_importance(pipeline, {"a": [0, 1], "b": [1, 4]}, "b,a")
    assert shares == [("a", 0.1, 0.25), ("b", 0.9, 0.75)]
