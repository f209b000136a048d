"""What the product does, as the benchmarks call it: extraction and one stage of training.

VGG16's weights are random here, as speed does not depend on them.
"""

import contextlib
import time
import timeit
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np

import common
from transfer import train
from transfer.activations import cache_outputs, output_file
from transfer.backend import keras
from transfer.weights import load_weights, with_precision

BATCH_SIZE = 32  # of training


def random_vgg16(image_size, classes, head, precision="float32"):
    """VGG16 with one of common.HEADS and random weights, the same ones at each call."""
    keras.utils.set_random_seed(0)
    model = common.build_model(image_size, classes, head)
    load_weights(model, "none", 0, common.layer_names(model, "all"))
    return with_precision(model, precision)


def our_extractor(model, batch_size, folder):
    """A function from images, uint8 (n, size, size, 3), to features float32 (n, n_features).

    Those of all layers of `model`, written into a new file in `folder` as extract_features.py does.
    """
    pooled, _ = common.feature_extractor(model, common.layer_names(model, "all"))

    def extract(images):
        path = folder / f"{time.time_ns()}.npy"
        file = output_file(pooled, len(images), path, "features")
        return cache_outputs(pooled, images, file, batch_size)

    return extract


@contextlib.contextmanager
def clocks():
    """Within it a training notes its moments, in seconds, in the dict of lists that is yielded.

    "begun": when each epoch begins, and the end; "trained": when each is done, but for writing;
    "loads": of each batch, the moment when its loading began, and how long it took.
    """
    moments = {"begun": [], "trained": [], "loads": []}

    def note(*_, name):
        moments[name].append(time.perf_counter())

    clock = keras.callbacks.LambdaCallback(
        on_epoch_begin=partial(note, name="begun"),
        on_epoch_end=partial(note, name="trained"),
        on_train_end=partial(note, name="begun"),
    )

    def fit(model, *given, callbacks, original=keras.Model.fit, **settings):
        # first, so that it is called before the callback that writes
        return original(model, *given, callbacks=[clock, *callbacks], **settings)

    def load(batches, index, original=common.Batches.__getitem__):
        start = time.perf_counter()
        batch = original(batches, index)
        moments["loads"].append((start, time.perf_counter() - start))
        return batch

    with (
        mock.patch.object(keras.Model, "fit", fit),
        mock.patch.object(common.Batches, "__getitem__", load),
    ):
        yield moments


def time_training(model, images, blocks, epochs, run, cache="none"):
    """Train one stage as finetune.py does, with random labels, into the new folder `run`.

    images: {"train": ..., "val": ...}, memory maps uint8 (n, size, size, 3). blocks: those whose
    convolutions train beside the head. Returns seconds: "filling", those before the first epoch, in
    which the cache is filled; "epochs", of each with its validation and writing; and "loading" and
    "writing", what loading batches (beside the device's work) and the end of epochs took of all
    epochs but the first, which compiles.
    """
    # a dataset of these images
    classes = model.output.shape[-1]
    rng = np.random.default_rng(0)
    splits = {}
    for split, array in images.items():
        labels = rng.integers(0, classes, len(array))
        splits[split] = SimpleNamespace(images=array, labels=labels)
    dataset = SimpleNamespace(name="benchmark", notice=None, labels=range(classes), splits=splits)

    # training
    run.mkdir()
    stage = train.Stage("benchmark", blocks, 1e-5, epochs, BATCH_SIZE, seed=0)
    start = time.perf_counter()
    with clocks() as moments:
        train.train_stages(model, [stage], dataset, cache, run)

    begun = moments["begun"]
    return {
        "filling": begun[0] - start,
        "epochs": np.diff(begun),
        "loading": sum(seconds for moment, seconds in moments["loads"] if moment > begun[1]),
        "writing": sum(np.subtract(begun[2:], moments["trained"][1:])),
    }


def matrix_product(size, precision):
    """Floating-point operations a second of the backend's matrix product, the best of five."""
    matrix = common.ops.cast(common.ops.ones((size, size)), precision)

    def multiply():
        corner = common.ops.matmul(matrix, matrix)[0, 0]
        np.asarray(common.ops.cast(corner, "float32"))  # waits for the device

    return 2 * size**3 / min(timeit.repeat(multiply, number=1, repeat=5))


def flop(model):
    """Floating-point operations of the convolutions and dense layers of `model` for one image."""
    products = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            positions = np.prod(layer.output.shape[1:-1])
            products += np.prod(layer.kernel.shape) * positions
    return 2 * products  # a product and a sum each
