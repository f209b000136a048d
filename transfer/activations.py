"""The outputs of a part of the network, computed once for all images and kept on disk."""

from functools import partial
from pathlib import Path

import numpy as np

from common import Batches, convolutions
from transfer.backend import keras
from transfer.devices import accelerators, current_share
from transfer.files import ArrayFile, build_or_load_array, free_space, prefetch
from transfer.weights import weights_digest

ON_A_GPU = 256  # images in a batch of extraction: on an H100 1.5 times as fast as 32 (benchmarks/README.md)
MAX_DISK_SHARE = (
    0.8  # share of the free space that activations may take; weights and results need some
)


def device_batch(batch_size):
    """Images in a batch of extraction where training's batches have so many: a GPU takes more at once."""
    more = max(1, ON_A_GPU // batch_size) if accelerators(keras.backend.backend()) else 1
    return batch_size * more


def output_file(model, count, path, description):
    """The ArrayFile of the output of `model` for so many images, in the precision that it has."""
    return ArrayFile(path, (count, *model.output.shape[1:]), model.output.dtype, description)


def cache_outputs(model, images, file, batch_size):
    """What `model` gives for `images`, uint8 (n, h, w, 3); computed where its `output_file` is missing."""
    share, predict = current_share(), model.predict_on_batch
    if share.replicas > 1:  # that would not share the batch out
        predict = partial(model.predict, batch_size=batch_size, verbose=0)
    batches = Batches(images, np.zeros(len(images), "int64"), batch_size, share=share)

    def fetch(start):
        batch = batches[start // batch_size][0]
        return (
            batch if share.replicas > 1 else keras.ops.convert_to_tensor(batch)
        )  # on the device already

    def blocks(starts):
        for start, batch in zip(starts, prefetch(fetch, starts)):
            yield np.asarray(predict(batch))[: len(images) - start]

    return build_or_load_array(file, blocks, batch_size)


def cache_activations(lower, boundary, images, batch_size, cache, decided=None):
    """{split: what `lower`, whose last layer is `boundary`, gives for images, {split: decoded ones}}, made
    where the folder `cache` lacks it; None where there is no room, unless a resumed run has `decided`."""
    # keyed by the decoded images' own key (files, image size) and all else that decides their last digit
    digest = weights_digest(lower, convolutions(lower))[:16]
    key = f"{boundary}-{lower.get_layer('block1_conv1').compute_dtype}-{keras.backend.backend()}-{digest}"
    files = {}
    for split, array in images.items():
        path = Path(cache) / f"{Path(array.filename).stem}-{len(array)}-{key}.npy"
        files[split] = output_file(lower, len(array), path, f"{boundary} of {split} images")
    size = sum(file.missing for file in files.values())
    if size and decided is None:
        free = free_space(path)
        room = size < MAX_DISK_SHARE * free
        space = f"{size / 1e9:.2f} GB of the {free / 1e9:.1f} GB free in {cache}"
        space += "." if room else ": too much, so each epoch computes them again."
        print(f"The activations of {boundary}, computed once, take {space}", flush=True)
        if not room:
            return None
    return {
        split: cache_outputs(lower, images[split], file, batch_size)
        for split, file in files.items()
    }
