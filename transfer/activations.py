"""What frozen blocks give for every image, computed once and kept, so that only the rest is trained on."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import convolutions, outputs_of, reads_every_layer, split_model
from transfer.devices import current_share
from transfer.files import ArrayFile, existing_folder, make_array_together
from transfer.weights import precision_of, weights_digest

SHARE = 0.8  # of the free space that activations may take; weights and results need some


@dataclass(frozen=True)
class Kept:
    """Where activations are kept, and as what."""

    folder: str = "data/cache"  # or "none"
    dtype: str = "float32"


def trained_part(model, step, dataset, kept):
    """What a Step trains, and on what.

    Returns (model, {split: its inputs}): the part of `model` behind its frozen blocks with their
    activations, computed first where they are not there yet; or, where something changes with every
    epoch or there is no room, all of it on the images (`inputs.on_images`).
    """
    from transfer.inputs import on_images

    images = {split: dataset.splits[split].images for split in ("train", "val")}
    boundary = last_constant_layer(model, step)
    if boundary and kept.folder != "none":
        lower, upper = split_model(model, boundary)
        activations = keep_activations(lower, boundary, images, step.batch_size, kept)
        if activations:
            return upper, activations
    return on_images(model, augmented=step.augment), images


def keep_activations(lower, boundary, images, batch_size, kept):
    """{split: what `lower`, whose last layer is `boundary`, gives for its images}, computed where it is not
    there yet; None where there is no room (where several workers share it out: BadInput)."""
    # keyed by the decoded images' own key (files, image size), the layer, the precision and the weights
    key = f"{boundary}-{precision_of(lower)}-{kept.dtype}-{weights_digest(lower, convolutions(lower))[:16]}"
    files = {
        split: ArrayFile(
            Path(kept.folder) / f"{Path(array.filename).stem}-{key}.npy",
            (len(array), *lower.output.shape[1:]),
            kept.dtype,
            f"{boundary} of {split} images",
        )
        for split, array in images.items()
    }
    share = current_share()
    # several workers must do the same, but each would see another free space while the others write
    if share.workers == 1 and not there_is_room(boundary, files.values(), kept.folder):
        return None
    return {
        split: make_array_together(file, outputs_of(lower, images[split], batch_size), batch_size, share)
        for split, file in files.items()
    }


def last_constant_layer(model, step):
    """The last layer whose output never changes in a Step and is all that is used of those before it; None
    where there is none."""
    if step.augment or "block1" in step.blocks:
        return None
    if reads_every_layer(model):
        return None if step.blocks else "features"
    return f"block{5 - len(step.blocks)}_pool"  # a strategy unfreezes the last blocks


def there_is_room(layer, files, folder):
    """Whether there is room for the activations of `layer`; says how much they take before they do."""
    missing = [file for file in files if not file.path.exists()]
    if not missing:
        return True
    size = sum(math.prod(file.shape) * np.dtype(file.dtype).itemsize for file in missing)
    free = shutil.disk_usage(existing_folder(missing[0].path)).free
    room = size < SHARE * free
    print(
        f"The activations of {layer}, computed once, take {size / 1e9:.2f} GB of the {free / 1e9:.1f} GB "
        f"free in {folder}" + ("." if room else ": too much, so each epoch computes them again."),
        flush=True,
    )
    return room
