"""Weights in and out: ImageNet's, a file's or new ones; what the network computes in."""

import contextlib
import hashlib
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
from packaging.version import Version

from common import all_layers, convolutions
from transfer.backend import keras
from transfer.console import BadInput
from transfer.devices import warn_of_precision

CONVOLUTIONS = [
    "block1_conv1",
    "block1_conv2",
    "block2_conv1",
    "block2_conv2",
    "block3_conv1",
    "block3_conv2",
    "block3_conv3",
    "block4_conv1",
    "block4_conv2",
    "block4_conv3",
    "block5_conv1",
    "block5_conv2",
    "block5_conv3",
]
NAMED_LAYER = re.compile(r"block\d_conv\d|fc\d|predictions")
PIXEL_DEVIATION = 60.0  # of ImageNet's pixels after VGG16's preprocessing
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
IN_FLOAT32 = (
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.Concatenate,
)


def load_weights(model, weights, seed, layers=None):
    """Give `layers` of `model` (default: its convolutions) their first weights. weights:
    "imagenet", "none" (new ones by `seed`), a Keras .h5, a .keras file, or a run's folder. BadInput
    names the first layer that is missing or of another shape."""
    layers = layers or convolutions(model)
    if weights == "none":
        init_weights(model, layers, seed)
        return

    found = read_weights(weights, "fc1" in layers)
    for name in layers:
        try:
            model.get_layer(name).set_weights(found.get(name, []))
        except ValueError as error:  # which says what the shapes are and should be
            raise BadInput(
                f"--weights {weights}: the layer {name} is missing or does not fit ({error}); use "
                "weights of VGG16, fc1 with the image size it was made for."
            ) from None


def init_weights(model, layers, seed):
    """Give `layers` new weights by `seed`: He-normal kernels, biases of 0, the same on every
    backend. Glorot's uniform, Keras' default, halves the variance at each rectified layer; He et
    al. (2015) keeps it, for inputs of variance 1: the first kernel is divided by the deviation of
    preprocessed pixels."""
    for number, name in enumerate(layers):
        kernel, bias = model.get_layer(name).weights
        deviation = np.sqrt(2 / np.prod(kernel.shape[:-1]))
        if name == "block1_conv1":
            deviation /= PIXEL_DEVIATION
        rng = np.random.default_rng([seed, number])
        kernel.assign(rng.normal(0, deviation, kernel.shape))
        bias.assign(np.zeros(bias.shape))


def read_weights(weights, top=False):
    """Weights of VGG16 by layer name, {name: [kernel, bias]}, from "imagenet" (top: its dense
    layers too), an .h5, a .keras or a run's folder, which may hold it within another network.
    BadInput where it has other convolutions."""
    if weights == "imagenet":
        return download_imagenet(top)
    path = model_file(weights)
    if is_published_vgg16(path):
        found = read_hdf5(path)
    else:
        found = {layer.name: layer.get_weights() for layer in all_layers(load_model(path))}

    kernels = [name for name, arrays in found.items() if arrays and arrays[0].ndim == 4]
    if len(kernels) == len(CONVOLUTIONS):  # in the order of the network, whatever their names
        return found | dict(zip(CONVOLUTIONS, [found[name] for name in kernels]))
    if set(filter(NAMED_LAYER.fullmatch, kernels)) != set(CONVOLUTIONS):
        raise BadInput(
            f"{path} is not a VGG16: {len(kernels)} convolutions instead of 13; name another."
        )
    return found


def download_imagenet(top):
    """Keras' own ImageNet weights by layer name; downloaded once, BadInput where that fails."""
    try:
        model = keras.applications.VGG16(include_top=top, weights="imagenet")
    except Exception as error:  # get_file raises bare Exception where the internet fails
        raise BadInput(
            f"The ImageNet weights could not be downloaded ({error}). Without internet, download "
            "VGG16's .h5 elsewhere and name it: --weights PATH (`none` starts from random weights)."
        ) from None
    return {layer.name: layer.get_weights() for layer in model.layers}


def is_published_vgg16(weights):
    """Whether --weights names VGG16 as it was published, an .h5 too, not a .keras file or a run."""
    return weights in ("imagenet", "none") or Path(weights).suffix.lower() in (".h5", ".hdf5")


def read_hdf5(path):
    """{layer: its arrays, kernel first} of a Keras HDF5 file. Layers have their names or, in a
    .weights.h5, where they lie in the file; they come in the order of the numbers in those."""
    layers = {}

    def visit(place, item):
        if isinstance(item, h5py.Dataset) and not place.startswith("optimizer"):
            folder = item.parent.name
            name = next(filter(NAMED_LAYER.fullmatch, folder.split("/")), folder)
            layers.setdefault(name, []).append(np.array(item))

    with refusing_damage(path), h5py.File(path, "r") as file:
        file.visititems(visit)
    check_numbers(path, sum(layers.values(), []))
    numbered = sorted(layers, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return {name: sorted(layers[name], key=lambda array: -array.ndim) for name in numbered}


def check_numbers(path, arrays):
    """BadInput where weights are no numbers, as a training that diverged leaves them."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise BadInput(
            f"{path} holds weights that are no numbers (NaN): its training diverged; train again "
            "with a lower learning rate, or name another."
        )


@contextlib.contextmanager
def refusing_damage(path):
    """Within it, any error is a BadInput that calls the file `path` damaged, or too new."""
    try:
        yield
    except Exception as error:  # a damaged file fails in many ways, all of them final
        written = newer_keras(path)
        if written:
            raise BadInput(
                f"{path} was written by Keras {written}, and Keras {keras.__version__}, which is "
                "installed, cannot read it: pip install --upgrade keras."
            ) from None
        reason = str(error).strip().split("\n")[0]
        raise BadInput(
            f"{path} is damaged or truncated, or no file of Keras ({reason}); copy or download it "
            "again, or name another."
        ) from None


def newer_keras(path):
    """The version of Keras that wrote the .keras file `path` where it is newer than the installed
    one, else None."""
    try:
        with zipfile.ZipFile(path) as archive:
            written = Version(json.loads(archive.read("metadata.json"))["keras_version"])
    except Exception:  # an .h5, or damaged
        return None
    return written if written > Version(keras.__version__) else None


def model_file(path):
    """The file behind a --weights: `path`, or model.keras in a run's folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "model.keras"
    if not path.is_file():
        raise BadInput(
            f"There is no weights file {path}. Check the path (`python test_model.py` lists the "
            "runs), or leave out --weights to use ImageNet's."
        )
    return path


def load_model(path):
    """The network of a .keras file or a run, none of whose code runs. BadInput where it is
    damaged."""
    path = model_file(path)
    with refusing_damage(path):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    check_numbers(path, model.get_weights())
    return model


def input_size(weights):
    """Pixels a side that the network takes which --weights names; None where it is not one of these
    scripts', as it may want pictures prepared otherwise: its weights alone are of use."""
    if is_published_vgg16(weights):
        return None
    path = model_file(weights)
    with refusing_damage(path), zipfile.ZipFile(path) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        ours = "preprocessing" in [layer["config"]["name"] for layer in layers]
        return layers[0]["config"]["batch_shape"][1] if ours else None


def weights_digest(model, layers):
    """sha256 over the named layers' weights: what decides their outputs."""
    digest = hashlib.sha256()
    for name in layers:
        for array in model.get_layer(name).get_weights():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def with_precision(model, precision):
    """`model`, or a copy of it with a new random state, that computes in "float32" or "bfloat16".
    Variables, preprocessing, means and the softmax are float32 in either. Says where it is slow."""
    if model.get_layer("block1_conv1").compute_dtype == precision:
        return model
    warn_of_precision(precision)

    def clone(layer):
        config = layer.get_config()
        fixed = isinstance(layer, IN_FLOAT32) or layer.name == "predictions"
        if isinstance(layer, keras.layers.Layer) and not fixed:
            config["dtype"] = POLICIES[precision]
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy
