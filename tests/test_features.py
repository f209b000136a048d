"""What is extracted and stored of the features: features.py, extract_features.py."""

import json
import shutil

import keras
import numpy as np
import pytest
from conftest import only_run, read_rows, write_csv

import common
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features
from transfer.images import load_images
from transfer.weights import load_weights


@pytest.fixture
def folder(workdir, stored_features):
    """A copy of the features of an untrained VGG16 for the tiny dataset, where scripts look for it."""
    folder = workdir / "features" / stored_features.name
    shutil.copytree(stored_features, folder)
    return folder


def test_stored_features_are_those_of_the_network_row_by_row(tiny, folder):
    dataset = load_images(load_dataset(tiny), ("val",), 32, "none")
    images = dataset.splits["val"].images[np.arange(5)]
    features = np.load(folder / "val.npy", allow_pickle=False)
    assert features.dtype == np.float32
    assert features.shape == (len(dataset.splits["val"].files), 12416)
    rows = read_rows(folder / "val.csv")
    assert [row["file"] for row in rows] == dataset.splits["val"].files.tolist()
    assert [int(row["label"]) for row in rows] == dataset.splits["val"].labels.tolist()
    assert [row["class"] for row in rows] == [dataset.labels[int(row["label"])] for row in rows]
    model = common.build_model(32, 4, "gap")
    load_weights(model, "none", seed=0)
    raw = keras.Model(model.input, model.get_layer("block3_conv2").output)
    start, stop = json.loads((folder / "features.json").read_text())["layers"]["block3_conv2"]
    expected = np.asarray(raw.predict_on_batch(images)).mean(axis=(1, 2))
    np.testing.assert_allclose(features[:5, start:stop], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("layers", "count"), [("all", 12416), ("last", 1472), ("block5_conv3", 512)]
)
def test_layer_sets_are_columns_of_one_extraction(tiny, folder, layers, count):
    dataset = load_dataset(tiny)
    features, labels, files = load_features(folder, dataset, "train", layers)
    assert features.shape == (len(files), count)
    columns = json.loads((folder / "features.json").read_text())["layers"]
    whole = np.load(folder / "train.npy")
    start, stop = columns["block5_conv3"]
    ours = features if layers != "all" else features[:, :stop]
    np.testing.assert_array_equal(ours[:, -512:], whole[:, start:stop])


def test_extracting_again_computes_nothing(tiny, folder, script, monkeypatch):
    monkeypatch.setattr("transfer.features.build_network", None)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    script("extract_features", "--data", tiny, "--weights", "none")
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_dataset_is_refused(folder, own_tiny):
    root, rows = own_tiny
    file, _, museum, split = rows[0]
    write_csv(root, [(file, "Woodcut", museum, split), *rows[1:]])
    with pytest.raises(
        BadInput, match="of other pictures than .*0 are gone, 0 new, or some were edited"
    ):
        load_features(folder, load_dataset(root), "train", "all")


def test_another_network_into_the_same_folder_is_refused(tiny, folder, script):
    before = (folder / "features.json").read_bytes()
    with pytest.raises(BadInput, match="weights_sha256"):
        script(
            "extract_features", "--data", tiny, "--weights", "none", "--seed", "1", "--out", folder
        )
    assert (folder / "features.json").read_bytes() == before


def damage_rows(folder):
    lines = (folder / "val.csv").read_text().splitlines(keepends=True)
    (folder / "val.csv").write_text("".join([lines[0], *lines[:0:-1]])[:-40])


def swap_label(folder):
    text = (folder / "val.csv").read_text().splitlines()
    cells = text[1].split(",")
    cells[1] = str((int(cells[1]) + 1) % 4)
    (folder / "val.csv").write_text("\n".join([text[0], ",".join(cells), *text[2:]]) + "\n")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "val.npy").write_bytes((folder / "val.npy").read_bytes()[:-100]),
        lambda folder: (folder / "val.npy").write_bytes(b""),
        lambda folder: np.save(folder / "val.npy", np.zeros((3, 4), "float32")),
        lambda folder: np.save(folder / "val.npy", np.array([{}], dtype=object), allow_pickle=True),
        lambda folder: (folder / "val.csv").unlink(),
        lambda folder: (folder / "features.json").write_text("{"),
        lambda folder: (folder / "features.json").unlink(),
        damage_rows,
        swap_label,
    ],
)
def test_damaged_features_are_refused(tiny, folder, damage):
    damage(folder)
    with pytest.raises(BadInput):
        load_features(folder, load_dataset(tiny), "val", "all")


def test_an_unknown_layer_is_named(tiny, workdir, script):
    with pytest.raises(BadInput, match="block9"):
        script("extract_features", "--data", tiny, "--layers", "block9")
    assert not (workdir / "features").exists()


def test_features_of_convolutions_at_another_size_than_the_networks(tiny, workdir, narrow, script):
    """An average over positions does not care: the same values as from a network made for that size."""
    model = common.build_model(48, 4, "i")
    load_weights(model, "none", seed=3)
    model.save("own.keras")
    flags = ("--data", tiny, "--weights", "own.keras")
    with pytest.raises(
        BadInput, match=r"dense layers of own\.keras take images of 48 .*--layers conv"
    ):
        script("extract_features", *flags, "--image-size", "64")
    for layers in ("conv", "block3_conv1,block5_conv3"):
        script(
            "extract_features", *flags, "--image-size", "64", "--layers", layers, "--out", layers
        )
    dataset = load_images(load_dataset(tiny), ("val",), 64, "none")
    larger = common.build_model(64, 4, "gap")
    for name in common.convolutions(larger):
        larger.get_layer(name).set_weights(model.get_layer(name).get_weights())
    images = dataset.splits["val"].images[np.arange(12)]
    raw = keras.Model(larger.input, larger.get_layer("block5_conv3").output).predict_on_batch(
        images
    )
    expected = np.asarray(raw).mean(axis=(1, 2))
    for layers in ("conv", "block3_conv1,block5_conv3"):
        found = np.load(f"{layers}/val.npy")[:, -expected.shape[1] :]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    script("extract_features", *flags, "--out", "own")  # without a size: the network's own
    assert json.loads((workdir / "own" / "features.json").read_text())["image_size"] == 48


def test_random_forests_at_another_size_take_the_convolutions_alone(tiny, workdir, narrow, script):
    model = common.build_model(48, 4, "i")
    model.save("own.keras")
    flags = ("--data", tiny, "--weights", "own.keras", "--trees", "2", "--image-size", "32")
    with pytest.raises(BadInput, match="--layers conv"):
        script("random_forest", *flags)
    script("random_forest", *flags, "--layers", "last")
    assert (workdir / "runs" / "tiny-forest-own-last-trees2-leaf2" / "metrics.json").exists()


def test_what_is_no_vgg16_is_said_to_be_none(tiny, workdir, script):
    inputs = keras.Input((8, 8, 3))
    keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs)).save("other.keras")
    for command in ("extract_features", "random_forest"):
        with pytest.raises(BadInput, match=r"other\.keras holds no VGG16 \(0 convolutions"):
            script(command, "--data", tiny, "--weights", "other.keras")


@pytest.mark.parametrize("command", ["extract_features", "random_forest"])
def test_without_network_the_flag_that_helps_is_named(tiny, workdir, script, monkeypatch, command):
    def get_file(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(BadInput) as error:
        script(command, "--data", tiny, "--weights", "imagenet", "--layers", "conv")
    assert "--weights PATH" in str(error.value)


def test_images_left_out_are_listed(own_tiny, workdir, narrow, script):
    root, _ = own_tiny
    bad = ["train.1.1.jpg", "val.2.0.jpeg"]
    for name in bad:
        (root / "data_256" / name).write_bytes(b"")
    flags = ("--data", root, "--weights", "none", "--layers", "block1_conv1", "--skip-unreadable")
    script("extract_features", *flags, "--out", "stored")
    assert json.loads((workdir / "stored" / "features.json").read_text())["skipped_images"] == bad
    script("random_forest", *flags, "--trees", "2", "--features", "stored")
    run = only_run(workdir)
    assert json.loads((run / "config.json").read_text())["features"]["skipped_images"] == bad


def test_three_parts_are_one_extraction_bit_by_bit(tiny, workdir, narrow, script):
    """In any order, beside each other; whoever needs the features joins them."""
    command = ("extract_features", "--data", tiny, "--layers", "conv", "--batch-size", "4", "--out")
    script(*command, "whole")
    for part in ("2/3", "3/3"):
        script(*command, "parts", "--part", part)
    with pytest.raises(BadInput, match="missing or damaged"):
        load_features("parts", load_dataset(tiny), "val")
    with pytest.raises(BadInput, match="are of another batch_size"):
        script(*command, "parts", "--part", "1/3", "--batch-size", "8")
    script(*command, "parts", "--part", "1/3")
    features, labels, files = load_features("parts", load_dataset(tiny), "val", "all")
    assert len(features) == len(labels) == len(files) == 12
    script("random_forest", "--data", tiny, "--features", "parts", "--trees", "2")
    for path in (workdir / "whole").glob("*.csv"):
        assert (workdir / "parts" / path.name).read_bytes() == path.read_bytes()
    for split in ("train", "val"):
        found = (workdir / "parts" / f"{split}.npy").read_bytes()
        assert found == (workdir / "whole" / f"{split}.npy").read_bytes()
    assert (
        len(list((workdir / "parts").glob("test.part-*.npy"))) == 3
    )  # of test, which nobody needed
    with pytest.raises(BadInput, match="fewer batches"):
        script(*command, "many", "--part", "9/9")
