"""Weights in and out: weights.py."""

import os
import zipfile

import h5py
import keras
import numpy as np
import pytest

import common
from transfer.console import BadInput
from transfer.features import FeatureSpec, build_network
from transfer.weights import init_weights, load_weights, weights_digest


@pytest.fixture
def pretrained(narrow):
    """A network with fc1, fc2 and predictions, as the official one has."""
    model = common.build_model(32, 4, "i")
    load_weights(model, "none", seed=7)
    return model


def save(path, model):
    """Save a model, or its weights alone, as the name of the file says."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)


def write_official(path, model):
    """The layout of the official Keras .h5 files: a group for each layer."""
    with h5py.File(path, "w") as file:
        for layer in model.layers:
            for kind, array in zip("Wb", layer.get_weights()):
                file[f"{layer.name}/{layer.name}/{layer.name}_{kind}_1:0"] = array


def write_notop(path, model):
    """The same without the dense layers."""
    write_official(path, keras.Model(model.input, model.get_layer("block5_pool").output))


def write_nested(path, model):
    """`model` within a network of someone else's."""
    inner = keras.Model(model.input, model.get_layer("block5_pool").output, name="vgg16")
    save(path, keras.Sequential([inner, keras.layers.Flatten(), keras.layers.Dense(3)]))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("top.h5", write_official),
        ("a.hdf5", write_notop),
        ("A.H5", write_notop),
        ("a.weights.h5", save),
        ("nested.keras", write_nested),
        ("nested.h5", write_nested),
        ("nested.weights.h5", write_nested),
    ],
)
def test_vgg16_is_read_in_every_form_and_gets_our_preprocessing(pretrained, tmp_path, name, write):
    write(tmp_path / name, pretrained)
    model = build_network(FeatureSpec(str(tmp_path / name), "conv", 32, 0, "float32"))
    assert model.get_layer("preprocessing")
    names = common.convolutions(model)
    assert weights_digest(model, names) == weights_digest(pretrained, names)


def test_new_weights_are_he_normal_and_follow_the_seed():
    layer = keras.layers.Conv2D(512, 3, name="one")
    model = keras.Sequential([keras.Input((8, 8, 512)), layer])

    def kernel(seed):
        init_weights(model, ["one"], seed)
        return layer.get_weights()[0]

    assert kernel(3).std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert np.any(kernel(3) != kernel(4))
    np.testing.assert_array_equal(kernel(3), kernel(3))


def of_a_newer_keras(path, model):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "99.1.0"}')


def truncated(path, model):
    model.save(path)
    os.truncate(path, 10_000)


def diverged(path, model):
    model.get_layer("block2_conv1").bias.assign(np.full(16, np.nan))
    model.save(path)


def of_other_shapes(path, model):
    write_notop(path, model)
    kernel = "block3_conv2/block3_conv2/block3_conv2_W_1:0"
    with h5py.File(path, "r+") as file:
        array = file.pop(kernel)
        file[kernel] = array[..., :7]


def of_vgg19(path, model):
    layers = [keras.Input((32, 32, 3))]
    for name in [*common.convolutions(model), "block3_conv4"]:
        layers.append(keras.layers.Conv2D(4, 3, padding="same", name=name))
    save(path, keras.Sequential(layers))


NEWER = rf"written by Keras 99\.1\.0, and Keras {keras.__version__}, which is installed"
NAN = r"no numbers \(NaN\): its training diverged"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.h5", None, r"no weights file .*absent\.h5\. Check the path"),
        ("newer.keras", of_a_newer_keras, NEWER),
        ("cut.h5", truncated, "is damaged or truncated"),
        ("cut.keras", truncated, "is damaged or truncated"),
        ("nan.h5", diverged, NAN),
        ("nan.keras", diverged, NAN),
        ("other.h5", of_other_shapes, r"block3_conv2 .*\(3, 3, 32, 32\).*\(3, 3, 32, 7\)"),
        ("notop.h5", write_notop, "the layer fc1 is missing"),
        ("vgg19.keras", of_vgg19, "is not a VGG16: 14 convolutions instead of 13"),
    ],
)
def test_weights_that_are_of_no_use_are_named(pretrained, tmp_path, name, write, message):
    if write:
        write(tmp_path / name, pretrained)
    model = common.build_model(32, 4, "i")

    with pytest.raises(BadInput, match=message) as error:
        load_weights(model, str(tmp_path / name), 0, [*common.convolutions(model), "fc1"])
    assert name in str(error.value)
    assert "\n" not in str(error.value)
