"""What is extracted and stored of the features: features.py, extract_features.py."""

import os
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import read_rows

import common
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import ExtractionOptions, FeatureSpec, features_folder, load_features
from transfer.files import read_json
from transfer.images import load_images
from transfer.weights import load_weights


def means(model, layer, images):
    """The activation of a layer for `images`, averaged over its positions: (n, channels)."""
    part = keras.Model(model.input, model.get_layer(layer).output)
    return np.asarray(part.predict_on_batch(images)).mean(axis=(1, 2))


def save_network(path, seed):
    """Save a narrow network with fc1 and fc2 for images of 48 pixels."""
    model = common.build_model(48, 4, "i")
    load_weights(model, "none", seed)
    model.save(path)


def test_stored_features_are_those_of_the_network_row_by_row(tiny, extracted, narrow):
    dataset = load_images(load_dataset(tiny), ("val",), 32, "none")
    val = dataset.splits["val"]

    features, labels, _ = load_features(extracted, dataset, "val")
    assert features.dtype == np.float32
    assert features.shape == (12, 12416 // 8)

    rows = read_rows(extracted / "val.csv")
    assert [row["file"] for row in rows] == val.files.tolist()
    assert [row["class"] for row in rows] == [dataset.labels[label] for label in labels]

    model = common.build_model(32, 4, "gap")
    load_weights(model, "none", seed=0)
    expected = means(model, "block3_conv2", val.images)
    features, _, _ = load_features(extracted, dataset, "val", "block3_conv2,block1_conv1")
    np.testing.assert_allclose(features[:, 8:], expected, rtol=1e-3, atol=1e-4)


def test_extracting_again_computes_nothing(tiny, extracted, script, monkeypatch):
    """Nor for a copy of the pictures, whose times are others."""
    monkeypatch.setattr("transfer.features.build_network", None)
    shutil.copytree(tiny, "copy/tiny", copy_function=shutil.copy)
    script("extract_features", "--data", "copy/tiny", "--weights", "none")
    script("extract_features", "--data", tiny, "--weights", "none", "--out", extracted)


def test_a_folder_is_named_after_all_that_decides_its_features(tiny, workdir, narrow):
    dataset = load_dataset(tiny)
    edited = replace(dataset, fingerprint="edited")
    spec = FeatureSpec("own.keras", "all", 48, 0, "float32")
    changes = [
        {},
        {"seed": 1},  # no weights are new: the same features
        {"layers": "conv"},
        {"image_size": 64},
        {"precision": "bfloat16"},
        {"weights": "none"},
        {"weights": "none", "seed": 1},
    ]

    save_network("own.keras", seed=3)
    options = ExtractionOptions(16)
    folders = [features_folder(replace(spec, **change), dataset, options) for change in changes]
    folders.append(features_folder(spec, edited, options))
    folders.append(features_folder(spec, dataset, replace(options, skip_unreadable=True)))
    save_network("own.keras", seed=4)
    folders.append(features_folder(spec, dataset, options))

    digests = [folder.name[-8:] for folder in folders]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 9


def test_features_of_something_else_are_not_mixed_in(tiny, extracted, script):
    before = (extracted / "features.json").read_bytes()
    flags = ("--data", tiny, "--weights", "none", "--out", extracted)
    with pytest.raises(
        BadInput, match=f"features in {extracted} are of other layers than asked for"
    ):
        script("extract_features", *flags, "--layers", "conv")
    assert (extracted / "features.json").read_bytes() == before


def cut(path):
    os.truncate(path, path.stat().st_size - 100)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("val.npy", cut),
        ("val.npy", lambda path: np.save(path, np.zeros((3, 4), "float32"))),
        ("val.npy", lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True)),
        ("features.json", os.unlink),
    ],
)
def test_damaged_features_are_refused(tiny, extracted, name, damage):
    damage(extracted / name)
    with pytest.raises(BadInput, match="delete"):
        load_features(extracted, load_dataset(tiny), "val", "all")


def test_features_of_convolutions_at_another_size_than_the_networks(tiny, workdir, narrow, script):
    """An average over positions does not care: the same values as from a network for that size."""
    save_network("own.keras", seed=3)
    flags = ("--data", tiny, "--weights", "own.keras")
    with pytest.raises(BadInput, match=r"own\.keras take images of 48 pixels .*--layers conv"):
        script("extract_features", *flags, "--image-size", "64")

    script("random_forest", *flags, "--image-size", "64", "--layers", "last", "--trees", "2")

    (folder,) = (workdir / "features").glob("tiny-own-64-conv-*")
    same = common.build_model(64, 4, "gap")
    load_weights(same, "own.keras", 0)
    images = load_images(load_dataset(tiny), ("val",), 64, "none").splits["val"].images
    expected = means(same, "block5_conv3", images)
    found = np.load(folder / "val.npy")
    np.testing.assert_allclose(found[:, -64:], expected, rtol=1e-4, atol=1e-4)

    script("extract_features", *flags, "--out", "own")  # without a size: the network's own
    assert read_json("own/features.json")["image_size"] == 48


def test_with_cache_and_out_nothing_is_written_to_the_working_folder(
    tiny, workdir, narrow, script, monkeypatch
):
    """As one that is read-only asks for."""
    (workdir / "here").mkdir()
    monkeypatch.chdir("here")
    flags = ("--cache", workdir / "cache", "--data", tiny)
    run = workdir / "run"
    script("extract_features", *flags)
    script("random_forest", *flags, "--trees", "2", "--out", run)
    script("test_model", *flags, "--run", run, "--accept", "0.9")
    script("test_model", *flags, "--run", run, "--predict", tiny / "data_256/test.0.0.jpeg")
    assert os.listdir() == []
    assert len(list((workdir / "cache/features").glob("tiny-*"))) == 1


def test_without_internet_the_flag_that_helps_is_named(tiny, workdir, script, monkeypatch):
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", None)  # which thus fails
    flags = ("--data", tiny, "--weights", "imagenet", "--layers", "conv")
    with pytest.raises(
        BadInput, match="download VGG16's .h5 elsewhere and name it: --weights PATH"
    ):
        script("extract_features", *flags)


def test_three_parts_are_one_extraction_bit_by_bit(tiny, workdir, narrow, script):
    """In any order; whoever needs the features joins them."""
    command = ("extract_features", "--data", tiny, "--layers", "conv", "--batch-size", "4", "--out")
    script(*command, "whole")
    for part in ("2/3", "3/3"):
        script(*command, "parts", "--part", part)

    dataset = load_dataset(tiny)
    with pytest.raises(BadInput, match="missing or damaged"):
        load_features("parts", dataset, "val")
    with pytest.raises(BadInput, match="are of another batch size"):
        script(*command, "parts", "--part", "1/3", "--batch-size", "8")

    with pytest.raises(BadInput, match="fewer batches"):
        script(*command, "many", "--part", "9/9")

    script(*command, "parts", "--part", "1/3")
    whole = workdir / "whole" / "val.npy"
    joined = workdir / "parts" / "val.npy"
    assert not joined.exists()
    load_features("parts", dataset, "val")
    assert joined.read_bytes() == whole.read_bytes()
