"""test_model.py --predict and --explain: what a run says of any pictures, and why."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import MEDIUMS
from PIL import Image

from common import build_model
from transfer import prediction, report
from transfer.dataset import load_dataset
from transfer.files import read_json
from transfer.images import decode_image
from transfer.screen import BadInput
from transfer.weights import load_model, load_weights

NETWORK, FOREST = "runs/tiny-finetune-i-none", "runs/tiny-forest-none-all-trees12-leaf2"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("run", [NETWORK, FOREST])
def test_predictions_are_those_of_the_test_split(tiny, in_runs, script, capsys, run):
    script("test_model", "--run", run, "--data", tiny)
    script("test_model", "--run", run, "--predict", tiny / "data_256", "--batch-size", "5")
    out = capsys.readouterr().out
    assert "and 46 more in predictions.csv" in out  # of 66 pictures 20 are shown
    with open(in_runs / run / "test" / "predictions.csv", newline="") as file:
        expected = {row["file"]: row for row in csv.DictReader(file)}
    with open(in_runs / run / "predicted" / "predictions.csv", newline="") as file:
        rows = {row["file"].rsplit("/")[-1]: row for row in csv.DictReader(file)}
    lines = read_lines(in_runs / run / "predicted" / "predictions.jsonl")
    assert len(rows) == len(lines) == 66
    for name, row in expected.items():
        for rank in range(1, len(MEDIUMS) + 1):
            probability = float(row[f"probability_{rank}"])
            assert float(rows[name][f"probability_{rank}"]) == pytest.approx(probability, abs=1e-4)
    assert sum(found["probability"] for found in lines[0]["predictions"]) == pytest.approx(1, abs=1e-4)
    assert {line["dataset"] for line in lines} == {"tiny"}


def test_without_a_run_the_best_of_all_predicts(tiny, in_runs, script, capsys):
    script("test_model", "--predict", tiny / "data_256" / "test.0.0.jpeg")
    figures = {
        run: json.loads((in_runs / run / "metrics.json").read_text())["val_accuracy"]
        for run in (NETWORK, FOREST)
    }
    out = capsys.readouterr().out
    assert f"{max(figures, key=figures.get)}, trained on tiny" in out
    assert out.count("TINY DATASET of the tests.") == 2


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(tiny, in_runs, script, capsys):
    (in_runs / "broken.jpg").write_bytes(b"GIF")
    (in_runs / "text.txt").write_text("no picture")
    Image.new("L", (300, 20)).save(in_runs / "grey.png")
    names = ["broken.jpg", "grey.png", "text.txt", "nowhere.png", tiny / "data_256" / "test.0.0.jpeg"]
    script("test_model", "--run", NETWORK, "--out", "said", "--predict", *names)
    lines = read_lines(in_runs / "said" / "predictions.jsonl")
    assert {line["file"] for line in lines if "predictions" in line} == {"grey.png", str(names[-1])}
    errors = {line["file"]: line["error"] for line in lines if "error" in line}
    assert set(errors) == {"broken.jpg", "text.txt", "nowhere.png"}
    assert errors["nowhere.png"] == "there is no such file"
    assert "3 files could not be read" in capsys.readouterr().out
    with pytest.raises(BadInput, match="said holds predictions already"):
        script("test_model", "--run", NETWORK, "--out", "said", "--predict", "grey.png")


def test_nothing_to_predict_ends_with_a_sentence(in_runs, workdir, script):
    (in_runs / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture in empty"):
        script("test_model", "--run", NETWORK, "--predict", "empty")
    with pytest.raises(BadInput, match="None of the 1 pictures could be read"):
        script("test_model", "--run", NETWORK, "--predict", "nowhere.png")
    with pytest.raises(BadInput, match="no finished run in nowhere/"):
        script("test_model", "--runs", "nowhere", "--predict", "grey.png")


def test_a_forest_whose_network_has_changed_is_refused(tiny, in_runs, script):
    config = in_runs / FOREST / "config.json"
    content = read_json(config)
    content["features"]["seed"] = 1  # another random network
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="has changed since"):
        script("test_model", "--run", FOREST, "--predict", tiny / "data_256" / "test.0.0.jpeg")


def test_grad_cam_is_the_weighted_sum_of_the_last_activations(tiny, runs):
    """An oracle: head i's gradient layer by layer in NumPy."""
    import keras

    from common import split_model

    model = load_model(runs / NETWORK)
    images = np.stack([decode_image(tiny / "data_256" / f"test.{n}.0.jpeg", 32) for n in range(2)])
    maps = prediction.grad_cam(model, images)
    assert maps.shape == (2, 2, 2)
    assert maps.max() == 1  # else the test says nothing
    lower, _ = split_model(model, "block5_conv3")
    x = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    activations = np.asarray(lower.predict_on_batch(x), "float64")  # (2, 2, 2, 512)
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
    model = build_model(32, 4, "layers")
    load_weights(model, "none", 0)
    rng = np.random.default_rng(0)
    normalisation = model.get_layer("batch_normalization")
    drawn = [np.abs(rng.normal(1, 0.2, array.shape)) for array in normalisation.get_weights()]
    normalisation.set_weights(drawn)
    images = np.stack([decode_image(tiny / "data_256" / f"test.{n}.0.jpeg", 32) for n in range(2)])
    maps = prediction.grad_cam(model, images)
    outputs = keras.Model(model.input, [model.get_layer("block5_conv3").output, model.output])
    x = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    activations, probabilities = (np.asarray(a, "float64") for a in outputs.predict_on_batch(x))
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
    assert (in_runs / FOREST / "predicted" / "layer_importance.png").exists()
    assert "Grad-CAM is of networks" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gallery_shows_the_most_confident_mistakes(tiny, in_runs, script, monkeypatch):
    galleries = []
    draw = report.plot_gallery
    monkeypatch.setattr(report, "plot_gallery", lambda *given: galleries.append(given) or draw(*given))
    script("test_model", "--run", NETWORK, "--data", tiny, "--explain")
    folder = in_runs / NETWORK / "test"
    with open(folder / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["true"] != row["predicted_1"]]
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
    importance, features = prediction.layer_importance(pipeline, columns, "all")
    assert list(importance) == list(columns)
    assert sum(importance.values()) == pytest.approx(1)
    start, stop = columns["block3_conv2"]
    expected = pipeline[-1].feature_importances_[start:stop].sum()
    assert importance["block3_conv2"] == pytest.approx(expected)
    assert features["block3_conv2"] == pytest.approx(256 / 12416)
    last, _ = prediction.layer_importance(pipeline, {"a": [0, 12000], "b": [12000, 12416]}, "b,a")
    assert list(last) == ["a", "b"]  # in the order of the columns, as `take_layers` takes them


def test_folders_are_searched_and_files_named_once(tiny, tmp_path):
    shutil.copy(tiny / "data_256" / "test.0.0.jpeg", tmp_path / "one.jpeg")
    (tmp_path / "deep").mkdir()
    shutil.copy(tiny / "data_256" / "test.0.0.jpeg", tmp_path / "deep" / "two.JPG")
    (tmp_path / "read.me").write_text("")
    found = prediction.list_pictures([tmp_path, tmp_path / "one.jpeg", tmp_path / "read.me"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["deep/two.JPG", "one.jpeg", "read.me"]
    assert load_dataset(tiny).labels == MEDIUMS


@pytest.mark.parametrize("columns", [60, 100, 300])
def test_the_table_of_predictions_fits_the_terminal(monkeypatch, capsys, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    name = "a very long name of a photograph, as museums give them, number 12345.jpg"
    ranked = [(f"a class of number {n}", 0.2) for n in range(5)]
    prediction.print_predictions({Path("somewhere") / name: ranked, Path("b.jpg"): ranked}, {})
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= max(columns, 70)
    assert "number 12345.jpg" in lines[1]
    assert "somewhere" not in lines[1]
    assert ("number 4" in lines[1]) == (columns == 300)
    assert "number 0" in lines[1]
