"""Why a run says what it says: explain.py."""

import numpy as np
import pytest
from conftest import read_rows
from PIL import Image

from common import build_model, split_model
from transfer import explain, plots
from transfer.files import read_json
from transfer.images import decode_image
from transfer.weights import load_model, load_weights

NETWORK, FOREST = "runs/tiny-finetune-i-none", "runs/tiny-forest-none-all-trees12-leaf2"


def test_grad_cam_is_the_weighted_sum_of_the_last_activations(tiny, runs):
    """An oracle: head i's gradient layer by layer in NumPy."""
    model = load_model(runs / NETWORK)
    images = np.stack([decode_image(tiny / "data_256" / f"test.{n}.0.jpeg", 32) for n in range(2)])
    maps = explain.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.max() == 1  # else the test says nothing
    lower, _ = split_model(model, "block5_conv3")
    activations = np.asarray(lower.predict_on_batch(images), "float64")  # (2, 2, 2, 512)
    (w1, b1), (w2, b2), (w3, b3) = (
        [array.astype("float64") for array in model.get_layer(name).get_weights()]
        for name in ("fc1", "fc2", "predictions")
    )
    for activation, found in zip(activations, maps):
        pooled = activation.max(axis=(0, 1))
        one = np.maximum(pooled @ w1 + b1, 0)
        two = np.maximum(one @ w2 + b2, 0)
        chosen = (two @ w3 + b3).argmax()
        # the pool passes each channel's gradient to one of its four positions, so its mean is a quarter
        slopes = w1 @ ((w2 @ (w3[:, chosen] * (two > 0))) * (one > 0)) / 4
        expected = np.maximum((activation * slopes).sum(axis=-1), 0)
        assert found == pytest.approx(expected / max(expected.max(), 1e-12), abs=1e-3)


def test_grad_cam_of_the_layer_wise_head_is_the_weighted_sum_too(tiny, narrow):
    """An oracle: behind the last convolution there are its mean, batch normalisation and the softmax."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_model(32, 4, "multilayer")
    load_weights(model, "none", 0)
    rng = np.random.default_rng(0)
    normalisation = model.get_layer("batch_normalization")
    drawn = [np.abs(rng.normal(1, 0.2, array.shape)) for array in normalisation.get_weights()]
    normalisation.set_weights(drawn)
    images = np.stack([decode_image(tiny / "data_256" / f"test.{n}.0.jpeg", 32) for n in range(2)])
    maps = explain.grad_cam(model, images)
    outputs = keras.Model(model.input, [model.get_layer("block5_conv3").output, model.output])
    activations, probabilities = (
        np.asarray(a, "float64") for a in outputs.predict_on_batch(images)
    )
    count = activations.shape[-1]
    gamma, _, _, variance = (array[-count:] for array in drawn)
    scale = gamma / np.sqrt(variance + normalisation.epsilon)
    weights = model.get_layer("predictions").get_weights()[0][-count:]
    assert maps.max() == 1
    for activation, probability, found in zip(activations, probabilities, maps):
        slopes = scale * weights[:, probability.argmax()]
        expected = np.maximum((activation * slopes).sum(axis=-1), 0)
        assert found == pytest.approx(expected / max(expected.max(), 1e-12), abs=1e-3)


@pytest.mark.slow
def test_explanations_are_drawn(tiny, in_runs, script, capsys):
    pictures = [tiny / "data_256" / f"test.{n}.0.jpeg" for n in range(3)]
    script("test_model", "--run", NETWORK, "--explain", "--predict", *pictures)
    drawn = sorted((in_runs / NETWORK / "predicted" / "explained").iterdir())
    assert [path.name for path in drawn] == [f"000{n + 1}-test.{n}.0.png" for n in range(3)]
    with Image.open(drawn[0]) as image:
        assert image.width > 1000
        assert np.asarray(image.convert("RGB")).std() > 20
    script("test_model", "--run", FOREST, "--explain", "--predict", *pictures)
    assert (in_runs / FOREST / "predicted" / "layer_importance.csv").exists()
    assert "Grad-CAM is for networks" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gallery_shows_the_most_confident_mistakes(tiny, in_runs, script, monkeypatch):
    galleries = []
    draw = plots.plot_gallery
    monkeypatch.setattr(
        plots, "plot_gallery", lambda *given: galleries.append(given) or draw(*given)
    )
    script("test_model", "--run", NETWORK, "--data", tiny, "--explain")
    folder = in_runs / NETWORK / "test"
    rows = [
        row for row in read_rows(folder / "predictions.csv") if row["true"] != row["predicted_1"]
    ]
    (_, mistakes, _, notice), *_ = galleries
    assert notice == "TINY DATASET of the tests."
    assert {path.name for path, *_ in mistakes} == {row["file"] for row in rows}
    assert [p for *_, p in mistakes] == sorted((p for *_, p in mistakes), reverse=True)
    for path, true, predicted, probability in mistakes:
        row = next(row for row in rows if row["file"] == path.name)
        assert (row["true"], row["predicted_1"]) == (true, predicted)
        assert float(row["probability_1"]) == pytest.approx(probability, abs=1e-4)
    assert len(list((folder / "explained").iterdir())) == min(len(rows), 24)
    assert (folder / "gallery.png").exists()


def test_importance_is_the_sum_over_a_layers_features(tiny, in_runs):
    from transfer.classifiers import load_pipeline

    config = read_json(in_runs / FOREST / "config.json")
    pipeline = load_pipeline(in_runs / FOREST / "pipeline.skops")
    columns = config["features"]["layers"]
    importance, features = explain.layer_importance(pipeline, columns, "all")
    assert list(importance) == list(columns)
    assert sum(importance.values()) == pytest.approx(1)
    start, stop = columns["block3_conv2"]
    expected = pipeline[-1].feature_importances_[start:stop].sum()
    assert importance["block3_conv2"] == pytest.approx(expected)
    assert features["block3_conv2"] == pytest.approx(256 / 12416)
    last, _ = explain.layer_importance(pipeline, {"a": [0, 12000], "b": [12000, 12416]}, "b,a")
    assert list(last) == ["a", "b"]  # in the order of the columns, as `select_columns` takes them
