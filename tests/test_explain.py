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


def slopes_of_multilayer(model, activations, chosen):
    """The same: the softmax's weights, as a new batch normalisation scales all means alike."""
    kernel, _ = model.get_layer("predictions").get_weights()
    channels = activations.shape[-1]
    return kernel[-channels:, chosen]


@pytest.mark.parametrize(
    ("head", "slopes"), [("i", slopes_of_head_i), ("multilayer", slopes_of_multilayer)]
)
def test_grad_cam_is_the_weighted_sum_of_the_last_activations(tiny, narrow, head, slopes):
    keras.utils.set_random_seed(0)
    model = build_model(32, 4, head)
    load_weights(model, "none", 0)
    folder = tiny / "data_256"
    images, _ = decode_all([folder / "test.0.0.jpeg", folder / "test.1.0.jpeg"], 32)
    maps = explain.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.max() == 1  # else the test says nothing

    # the oracle
    last = model.get_layer("block5_conv3").output
    lower = keras.Model(model.input, [last, model.output])
    for found, activations, answer in zip(maps, *lower.predict_on_batch(images)):
        weighted = activations * slopes(model, activations, answer.argmax())
        expected = np.maximum(weighted.sum(axis=-1), 0)
        expected /= max(expected.max(), 1e-12)
        assert found == pytest.approx(expected, abs=1e-3)


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
    plot = plots.plot_gallery

    def watched(*given):
        galleries.append(given)
        plot(*given)

    monkeypatch.setattr(plots, "plot_gallery", watched)
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
    ("classifier", "layers", "expected"),
    [
        (
            SimpleNamespace(feature_importances_=np.array([1, 2, 3, 4])),
            "all",
            [("a", 0.1, 0.25), ("b", 0.9, 0.75)],
        ),
        (
            SimpleNamespace(coef_=np.array([[1, -2, 0, 0], [0, 0, -3, 2]])),
            "b,a",
            [("a", 0.125, 0.25), ("b", 0.875, 0.75)],
        ),
    ],
)
def test_importance_is_the_sum_over_a_layers_features(classifier, layers, expected):
    columns = {"a": [0, 1], "b": [1, 4]}
    assert explain.layer_importance([classifier], columns, layers) == expected
