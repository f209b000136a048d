"""What the tests of training share: a network with its images, and the training of one Stage."""

import numpy as np

import common
from transfer.checkpoint import Checkpoint
from transfer.data import load_dataset
from transfer.images import load_images
from transfer.train import Stage, train_stage
from transfer.weights import load_weights


def make(tiny, cache, head="iii", seed=0):
    """A network with new weights, and the tiny dataset with the images that it is trained on."""
    dataset = load_images(load_dataset(tiny), ("train", "val"), 32, str(cache))
    model = common.build_model(32, 4, head, seed=seed)
    load_weights(model, "none", seed)
    return model, dataset


def stage(blocks=(), **settings):
    """A Stage of one epoch, or as `settings` say."""
    usual = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 16, "seed": 0}
    return Stage("", blocks, **usual | settings)


def train(model, planned, dataset, folder, cache=None):
    """Train one Stage as the run in `folder`, which may have begun it; the rows of its history.
    cache: where activations are kept, `folder` if not given, or "none"."""
    folder.mkdir(exist_ok=True)
    checkpoint = Checkpoint.read(folder)
    train_stage(model, planned, dataset, str(cache or folder), checkpoint)
    return checkpoint.history


def losses(history):
    """Loss and val_loss of each row."""
    return [(row["loss"], row["val_loss"]) for row in history]


def snapshot(model):
    """{layer: copies of its weights} of the layers that have some."""
    return {layer.name: layer.get_weights() for layer in model.layers if layer.weights}


def changed(before, model, tolerance=0):
    """The layers with a weight that differs from what `snapshot` gave by more than `tolerance`."""
    return {
        name
        for name, arrays in before.items()
        for one, other in zip(arrays, model.get_layer(name).get_weights(), strict=True)
        if np.abs(one - other).max() > tolerance
    }
