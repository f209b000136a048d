"""Weights in and out: ImageNet's, a file's or new ones; random state; precision."""

import hashlib
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np

from common import convolutions
from transfer.backend import keras
from transfer.console import BadInput

CONVOLUTIONS = [
    f"block{b}_conv{n}" for b, of in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, of + 1)
]
NAMED_LAYER = re.compile(r"block\d_conv\d|fc\d|predictions")
PIXEL_DEVIATION = 60.0  # of ImageNet's pixels after VGG16's preprocessing
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
IN_FLOAT32 = (keras.layers.Rescaling, keras.layers.GlobalAveragePooling2D, keras.layers.Concatenate)


def load_weights(model, weights, seed, layers=None):
    """Give `layers` of `model` (default: its convolutions) their first weights. weights: "imagenet", "none"
    (drawn by `seed`), a Keras .h5, a .keras file, or a run's folder. BadInput names the first layer that is
    missing or of another shape; `model` is then as it was."""
    layers = layers or convolutions(model)
    if weights == "none":
        init_weights(model, layers, seed)
        return
    found = read_weights(weights, "fc1" in layers)
    for name in layers:
        needed = [tuple(variable.shape) for variable in model.get_layer(name).weights]
        if name not in found:
            raise BadInput(f"--weights {weights} has no layer {name}; name another.")
        shapes = [array.shape for array in found[name]]
        if shapes != needed:
            advice = f"{needed} are needed; use weights of VGG16, fc1 with the image size it was made for"
            raise BadInput(
                f"--weights {weights}: layer {name} has the shapes {shapes} where {advice}."
            )
    for name in layers:
        model.get_layer(name).set_weights(found[name])


def init_weights(model, layers, seed):
    """Draw new weights for `layers`: He-normal kernels, biases of 0, the same on every backend. Glorot's
    uniform, Keras' default, halves the variance at each rectified layer; He et al. (2015) keeps it, for
    inputs of variance 1: the first kernel is divided by the deviation of preprocessed pixels."""
    for number, name in enumerate(layers):
        kernel, bias = model.get_layer(name).weights
        rng = np.random.default_rng([seed, number])
        deviation = np.sqrt(2 / np.prod(kernel.shape[:-1]))
        deviation /= PIXEL_DEVIATION if name == "block1_conv1" else 1
        drawn = np.empty(kernel.shape, "float32")
        for part in drawn:  # part by part, as NumPy draws float64: twice the room
            part[...] = rng.normal(0, deviation, part.shape)
        kernel.assign(drawn)
        bias.assign(np.zeros(bias.shape))


def read_weights(weights, top=False):
    """Weights of VGG16 by layer name, {name: [kernel, bias]}, from "imagenet", an .h5, a .keras or a run's
    folder, which may hold it within another network. BadInput where it has other convolutions."""
    if weights == "imagenet":
        try:
            model = keras.applications.VGG16(include_top=top, weights="imagenet")
        except Exception as error:  # get_file raises bare Exception where the network fails
            advice = (
                "connect to the network once, or use --weights PATH (an official VGG16 .h5) or none"
            )
            raise BadInput(
                f"The ImageNet weights could not be downloaded ({error}); {advice}."
            ) from None
        return {layer.name: layer.get_weights() for layer in model.layers}
    path = Path(weights)
    if is_published_vgg16(path):
        found = read_hdf5(path)
        check_numbers(path, sum(found.values(), []))
    else:
        found = {layer.name: layer.get_weights() for layer in all_layers(load_model(path))}
    kernels = {name: arrays for name, arrays in found.items() if arrays and arrays[0].ndim == 4}
    named = {name: arrays for name, arrays in kernels.items() if NAMED_LAYER.fullmatch(name)}
    if not named and len(kernels) == len(CONVOLUTIONS):
        named = dict(zip(CONVOLUTIONS, kernels.values()))
        dense = [arrays for arrays in found.values() if arrays and arrays[0].ndim == 2]
        if dense and dense[0][0].shape[1] == 4096:
            found = dict(zip(("fc1", "fc2"), dense))
    if set(named) != set(CONVOLUTIONS):
        raise BadInput(
            f"{path} holds no VGG16 ({len(kernels)} convolutions, not its 13); name another."
        )
    return found | named


def is_published_vgg16(weights):
    """Whether --weights names VGG16 as it was published, an .h5 too, rather than a .keras file or a run."""
    return weights in ("imagenet", "none") or Path(weights).suffix.lower() in (".h5", ".hdf5")


def read_hdf5(path):
    """{layer: its arrays, kernel first} of a Keras HDF5 file. Layers bear their names or, in a .weights.h5,
    where they lie in the file; they come in the order of the numbers in those."""
    if not path.is_file():
        raise BadInput(f"There is no weights file {path}; name another, or use --weights none.")
    layers = {}

    def visit(place, item):
        if isinstance(item, h5py.Dataset) and not place.startswith("optimizer"):
            folder, _, _ = place.rpartition("/")
            name = next(filter(NAMED_LAYER.fullmatch, folder.split("/")), folder)
            layers.setdefault(name, []).append(np.array(item))

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except (OSError, KeyError, RuntimeError) as error:
        raise damaged(path, "Keras .h5 file", error) from None
    numbered = sorted(layers, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
    return {name: sorted(layers[name], key=lambda array: -array.ndim) for name in numbered}


def all_layers(model):
    """Yields the layers of a model, and of models within it."""
    for layer in model.layers:
        yield from all_layers(layer) if hasattr(layer, "layers") else (layer,)


def check_numbers(path, arrays):
    """BadInput where weights are no numbers, as a training that diverged leaves them."""
    if not all(np.isfinite(array).all() for array in arrays):
        advice = "train again with a lower learning rate, or name another"
        raise BadInput(
            f"{path} holds weights that are no numbers (NaN): its training diverged; {advice}."
        )


def damaged(path, kind, error):
    """The BadInput for a file that cannot be read as what it is."""
    if (
        "truncated" in str(error)
        or path.open("rb").read(2) == b"PK"
        and not zipfile.is_zipfile(path)
    ):
        return BadInput(f"{path} is truncated: its end is missing; copy or download it again.")
    reason = str(error).strip().split("\n")[0]
    return BadInput(f"{path} is not a whole {kind} ({reason}); name another.")


def model_file(path):
    """The file behind a --weights: `path`, or model.keras in a run's folder."""
    path = Path(path)
    path = path / "model.keras" if path.is_dir() else path
    if not path.is_file():
        raise BadInput(
            f"There is no model {path}; `python test_model.py` lists the runs there are."
        )
    return path


def load_model(path):
    """The network of a .keras file or a run, none of whose code runs. BadInput where it is damaged."""
    path = model_file(path)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise damaged(path, ".keras model", error) from None
    check_numbers(path, model.get_weights())
    return model


def input_size(weights):
    """Pixels a side that the network takes which --weights names; None where it is not one of these
    scripts', as it may want pictures prepared otherwise: its weights alone are of use."""
    if is_published_vgg16(weights):
        return None
    path = model_file(weights)
    try:
        with zipfile.ZipFile(path) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        ours = any(layer["config"]["name"] == "preprocessing" for layer in layers)
        return layers[0]["config"]["batch_shape"][1] if ours else None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise damaged(path, ".keras model", error) from None


def weights_digest(model, layers):
    """sha256 over the named layers' weights: what decides their outputs."""
    digest = hashlib.sha256()
    for name in layers:
        for array in model.get_layer(name).get_weights():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def random_state(model):
    """{layer: [seed, count]} of the layers that draw at random: what no weights file of Keras holds."""
    drawn = [layer for layer in model.layers if hasattr(layer, "seed_generator")]
    return {layer.name: np.asarray(layer.seed_generator.state).tolist() for layer in drawn}


def set_random_state(model, states):
    """Set what `random_state` gave."""
    for name, state in states.items():
        model.get_layer(name).seed_generator.state.assign(np.array(state, "uint32"))


def with_precision(model, precision):
    """`model`, or a copy of it with a new random state, that computes in "float32" or "bfloat16".
    Variables, preprocessing, means and the softmax are float32 in either."""
    if model.get_layer("block1_conv1").compute_dtype == precision:
        return model

    def clone(layer):
        config = layer.get_config()
        computes = isinstance(layer, keras.layers.Layer) and not isinstance(
            layer, keras.layers.InputLayer
        )
        if computes and not isinstance(layer, IN_FLOAT32) and layer.name != "predictions":
            config["dtype"] = POLICIES[precision]
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy
