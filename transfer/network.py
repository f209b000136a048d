"""The network's weights, its precision, and its devices.

    one machine         TensorFlow: tf.distribute.MirroredStrategy; JAX: keras.distribution.DataParallel
    several machines    JAX: processes that keras.distribution.initialize brings together

Each batch is shared out evenly and gradients are averaged: the same training as on one device.
"""

import contextlib
import hashlib
import json
import os
import re
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from common import Share, convolutions
from transfer.screen import BadInput

CONVOLUTIONS = [f"block{b}_conv{n}" for b, of in enumerate((2, 2, 3, 3, 3), 1) for n in range(1, of + 1)]
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
        draw_weights(model, layers, seed)
        return
    found = read_weights(weights, "fc1" in layers)
    for name in layers:
        needed = [tuple(variable.shape) for variable in model.get_layer(name).weights]
        if name not in found:
            raise BadInput(f"--weights {weights} has no layer {name}; name another.")
        shapes = [array.shape for array in found[name]]
        if shapes != needed:
            advice = f"{needed} are needed; use weights of VGG16, fc1 with the image size it was made for"
            raise BadInput(f"--weights {weights}: layer {name} has the shapes {shapes} where {advice}.")
    for name in layers:
        model.get_layer(name).set_weights(found[name])


def draw_weights(model, layers, seed):
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
            advice = "connect to the network once, or use --weights PATH (an official VGG16 .h5) or none"
            raise BadInput(f"The ImageNet weights could not be downloaded ({error}); {advice}.") from None
        return {layer.name: layer.get_weights() for layer in model.layers}
    path = Path(weights)
    if is_original(path):
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
        raise BadInput(f"{path} holds no VGG16 ({len(kernels)} convolutions, not its 13); name another.")
    return found | named


def is_original(weights):
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
        raise BadInput(f"{path} holds weights that are no numbers (NaN): its training diverged; {advice}.")


def damaged(path, kind, error):
    """The BadInput for a file that cannot be read as what it is."""
    if "truncated" in str(error) or path.open("rb").read(2) == b"PK" and not zipfile.is_zipfile(path):
        return BadInput(f"{path} is truncated: its end is missing; copy or download it again.")
    reason = str(error).strip().split("\n")[0]
    return BadInput(f"{path} is not a whole {kind} ({reason}); name another.")


def model_file(path):
    """The file behind a --weights: `path`, or model.keras in a run's folder."""
    path = Path(path)
    path = path / "model.keras" if path.is_dir() else path
    if not path.is_file():
        raise BadInput(f"There is no model {path}; `python test_model.py` lists the runs there are.")
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
    if is_original(weights):
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
        computes = isinstance(layer, keras.layers.Layer) and not isinstance(layer, keras.layers.InputLayer)
        if computes and not isinstance(layer, IN_FLOAT32) and layer.name != "predictions":
            config["dtype"] = POLICIES[precision]
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


@contextlib.contextmanager
def on_devices(devices, batch_size, processes=False):
    """Within it, networks are built for and trained on the devices that --devices and --processes name.
    Call it before anything is computed. Yields (Share, one line on what computes). BadInput for misfits."""
    backend = keras.backend.backend()
    if backend == "torch" and (devices or 1) > 1 or backend != "jax" and processes:
        flag = "--processes" if processes else "--devices"
        raise BadInput(f"{flag} does not work on {backend}; use KERAS_BACKEND=jax (docs/devices.md).")
    with contextlib.ExitStack() as stack:
        if backend == "tensorflow":
            stack.enter_context(tensorflow_scope(devices, batch_size))
        elif backend == "jax":
            stack.enter_context(jax_scope(devices, batch_size, processes))
        share = current_share()
        if batch_size % share.replicas:
            raise BadInput(f"--batch-size {batch_size}: choose a multiple of {share.replicas} (devices).")
        yield share, describe_devices(backend, share)


def choose_devices(wanted, found, batch_size):
    """How many of the devices `found` are used: those wanted, or as many as a batch can be shared among."""
    if wanted is None:
        return max(number for number in range(1, found + 1) if batch_size % number == 0)
    if wanted > found:
        raise BadInput(f"--devices {wanted}: there are {found} accelerators; choose fewer.")
    return wanted


def tensorflow_scope(devices, batch_size):
    """A context in which TensorFlow computes on so many devices."""
    import tensorflow

    gpus = tensorflow.config.list_physical_devices("GPU")
    if gpus:
        devices = choose_devices(devices, len(gpus), batch_size)
        tensorflow.config.set_visible_devices(gpus[:devices], "GPU")
    elif (devices or 1) > 1:
        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        parts = [tensorflow.config.LogicalDeviceConfiguration()] * devices
        tensorflow.config.set_logical_device_configuration(cpu, parts)
    if (devices or 1) == 1:
        return contextlib.nullcontext()
    names = [device.name for device in tensorflow.config.list_logical_devices("GPU" if gpus else "CPU")]
    return tensorflow.distribute.MirroredStrategy(names).scope()


def jax_scope(devices, batch_size, processes):
    """A context in which JAX computes on so many devices of each process."""
    import jax

    if (devices or 1) > 1 and jax.config.jax_num_cpu_devices in (None, -1):
        jax.config.update("jax_num_cpu_devices", devices)  # no effect on accelerators
    if processes:
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "check KERAS_DISTRIBUTION_JOB_ADDRESSES and the like (docs/devices.md)"
            raise BadInput(f"The processes do not find each other ({reason}); {advice}.") from None
    local = jax.local_devices()
    found = len(local) if devices or local[0].platform != "cpu" else 1
    devices = choose_devices(devices, found, batch_size)
    if not processes and devices == 1:
        return contextlib.nullcontext()
    by_process = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    chosen = [device for index in sorted(by_process) for device in by_process[index][:devices]]
    names = [f"{device.platform}:{device.id}" for device in chosen]
    # each process gives its own part of a batch: nothing is left for Keras to share out
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope()


def current_share():
    """The Share under the distribution of this moment, as the engine knows it."""
    backend, distribution = keras.backend.backend(), keras.distribution.distribution()
    if backend == "jax" and distribution:
        import jax

        return Share(distribution.device_mesh.devices.size, jax.process_count(), jax.process_index())
    if backend == "tensorflow":
        import tensorflow

        return Share(tensorflow.distribute.get_strategy().num_replicas_in_sync, whole_batches=True)
    return Share()


def describe_devices(backend, share):
    """One line on what `backend` computes on."""
    found, line = accelerators(backend), f"CPU, {os.cpu_count()} threads"
    if found:
        line = f"{found[0]}, " + (f"{share.replicas} of {len(found)} GPUs" if len(found) > 1 else "1 GPU")
    if share.replicas > 1:
        line += f"; each batch is shared out among {share.replicas} devices"
        line += f" of {share.processes} processes" * (share.processes > 1)
    return f"{line} ({backend})"


def accelerators(backend):
    """Names of the accelerators that a backend sees on this machine."""
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    import tensorflow.config

    gpus = tensorflow.config.list_physical_devices("GPU")
    return [tensorflow.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]
