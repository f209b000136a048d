"""Where a network's weights come from and what identifies them: ImageNet, files, runs, random draws."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from common import convolutions
from transfer.files import check_file, checksum_file
from transfer.screen import BadInput

PIXEL_DEVIATION = 60.0  # of ImageNet's pixels after preprocess_input, about the same in each channel
FLOAT32_LAYERS = ("predictions",)  # a softmax in bfloat16 has three digits


def load_weights(model, weights, seed, layers=None, flag="--weights"):
    """Give `layers` of `model` (default: its convolutions) their first weights.

    weights: "imagenet", "none" (He-normal, drawn by `seed`), or a path: an official Keras .h5
    with or without top, a .keras file, or a run's folder. flag: where the user named them.
    Raises BadInput that names the first layer that is missing or of another shape.

    Glorot's uniform, VGG16's default in Keras, halves the variance at each rectified layer, 13 times.
    He et al. (2015) keeps it, which is what lets plain deep networks train from scratch. It asks for
    inputs of variance 1; `preprocess_input` leaves pixels at a standard deviation of about 60, by
    which the first kernel is divided.
    """
    layers = layers or convolutions(model)
    if weights == "none":
        for number, name in enumerate(layers):
            kernel, bias = model.get_layer(name).weights
            rng = np.random.default_rng([seed, number])  # NumPy's: the same on every backend
            deviation = np.sqrt(2 / np.prod(kernel.shape[:-1]))
            if name == "block1_conv1":
                deviation /= PIXEL_DEVIATION
            drawn = np.empty(kernel.shape, "float32")
            for part in drawn:  # part by part, as NumPy draws float64: twice the room
                part[...] = rng.normal(0, deviation, part.shape)
            kernel.assign(drawn)
            bias.assign(np.zeros(bias.shape))
        return
    found = read_weights(weights, "fc1" in layers, flag)
    for name in layers:
        layer = model.get_layer(name)
        needed = [tuple(variable.shape) for variable in layer.weights]
        if name not in found:
            raise BadInput(f"{flag} {weights} has no layer {name}: it is no VGG16; name another.")
        shapes = [array.shape for array in found[name]]
        if shapes != needed:
            raise BadInput(
                f"{flag} {weights}: layer {name} has the shapes {shapes} where {needed} are "
                "needed; use weights of VGG16 (and for fc1 the image size that they were made for)."
            )
    for name in layers:
        model.get_layer(name).set_weights(found[name])


def read_weights(weights, top=False, flag="--weights"):
    """Weights by layer name, {name: [arrays]}, from "imagenet", a .h5, a .keras or a run's folder."""
    import h5py
    import keras

    if weights == "imagenet":
        try:
            model = keras.applications.VGG16(include_top=top, weights="imagenet")
        except Exception as error:  # get_file raises bare Exception where the network fails
            raise BadInput(
                f"The ImageNet weights could not be downloaded ({error}); connect to the network "
                f"once, or use {flag} PATH (an official VGG16 .h5) or {flag} none (drawn anew)."
            ) from None
        return {layer.name: layer.get_weights() for layer in model.layers}
    path = Path(weights)
    if path.suffix != ".h5":
        return {layer.name: layer.get_weights() for layer in load_model(path).layers}
    if not path.is_file():
        raise BadInput(f"There is no weights file {path}; name another, or use {flag} none.")
    try:
        with h5py.File(path, "r") as file:
            group = file.get("model_weights", file)
            return {
                text(name): [
                    np.array(group[text(name)][text(w)]) for w in group[name].attrs["weight_names"]
                ]
                for name in group.attrs["layer_names"]
            }
    except (OSError, KeyError) as error:
        raise BadInput(
            f"{path} is not a Keras .h5 weights file ({error}); use an official VGG16 file or a run."
        ) from None


def text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def model_file(path):
    """The file behind a --model or --weights: `path`, or model.keras in a run's folder."""
    path = Path(path)
    path = path / "model.keras" if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"There is no model {path}; `python test_model.py` lists the runs there are.")
    return path


def load_model(path):
    """The network of a .keras file or of a run's folder; loading runs no code from the file.

    BadInput where it cannot be loaded, or is not what its checksum (a run writes one) was made of.
    """
    import keras

    path = model_file(path)
    if checksum_file(path).exists():
        check_file(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        reason = str(error).strip().split("\n")[0]
        raise BadInput(f"{path} is not a whole .keras model ({reason}); name another.") from None


def input_size(path):
    """The image size of the VGG16 in a .keras file or a run's folder, in pixels, without loading it.

    BadInput where there is no VGG16.
    """
    path = model_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            layers = json.loads(archive.read("config.json"))["config"]["layers"]
        names = {layer["config"]["name"] for layer in layers}
        if {"block1_conv1", "block5_conv3"} <= names:
            return int(layers[0]["config"]["batch_shape"][1])
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, TypeError):
        pass
    raise BadInput(f"{path} holds no VGG16 (no layers block1_conv1 to block5_conv3); name another.")


def weights_digest(model, layers):
    """sha256 over the named layers' weights: what decides their outputs."""
    digest = hashlib.sha256()
    for name in layers:
        for array in model.get_layer(name).get_weights():
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def layers_of(model):
    """The layers of `model`, those of models within it too."""
    for layer in model.layers:
        yield from layers_of(layer) if hasattr(layer, "layers") else (layer,)


def random_generators(model):
    """{layer: its seed generator} of the layers of `model` that draw at random."""
    layers = (layer for layer in layers_of(model) if hasattr(layer, "seed_generator"))
    return {layer.name: layer.seed_generator for layer in layers}


def random_state(model):
    """{layer: [seed, count]} of the layers that draw at random: what no weights file of Keras holds."""
    return {name: np.asarray(drawn.state).tolist() for name, drawn in random_generators(model).items()}


def set_random_state(model, states):
    """Set what `random_state` gave; `model` may have fewer of its layers."""
    for name, drawn in random_generators(model).items():
        if name in states:
            drawn.state.assign(np.array(states[name], "uint32"))


def precision_of(model):
    """In which the convolutions of `model` compute: "float32" or "bfloat16"."""
    return model.get_layer(convolutions(model)[0]).compute_dtype


def with_precision(model, precision):
    """`model`, or a copy of it, that computes in "float32" or "bfloat16".

    Variables and the softmax are float32 in either; the copy has a new optimizer and random state.
    """
    import keras

    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[precision]
    policies = {layer.name: "float32" if layer.name in FLOAT32_LAYERS else policy for layer in model.layers}
    computing = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if all(layer.dtype_policy.name == policies[layer.name] for layer in computing):
        return model

    def clone(layer):
        dtype = {"dtype": policies[layer.name]} if layer in computing else {}
        return type(layer).from_config(layer.get_config() | dtype)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy
