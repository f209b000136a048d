"""The outputs of a part of the network, computed once for all images and kept on disk."""

from functools import partial
from pathlib import Path

import numpy as np

from common import Batches, convolutions
from transfer.backend import keras
from transfer.devices import accelerators, current_share
from transfer.files import ArrayFile, build_or_load_array, free_space, prefetch
from transfer.weights import weights_digest

# images in a batch of extraction: on an H100 1.5 times as fast as 32 (benchmarks/README.md)
ON_A_GPU = 256
# share of the free space that activations may take; weights and results need some
MAX_DISK_SHARE = 0.8


def device_batch(batch_size):
    """Images in a batch of extraction where training's batches have so many: a GPU takes more at
    once."""
    if not accelerators():
        return batch_size
    return batch_size * max(1, ON_A_GPU // batch_size)


def output_file(model, count, path, description):
    """The ArrayFile of the output of `model` for so many images, in the precision that it has."""
    return ArrayFile(path, (count, *model.output.shape[1:]), model.output.dtype, description)


def cache_outputs(model, images, file, batch_size):
    """What `model` gives for `images`, uint8 (n, h, w, 3); computed where its `output_file` is
    missing."""
    share = current_share()
    batches = Batches(images, np.zeros(len(images), "int64"), batch_size, share=share)
    predict = model.predict_on_batch
    if share.replicas > 1:  # that would not share the batch out
        predict = partial(model.predict, batch_size=batch_size, verbose=0)

    def fetch(start):  # to the device, before its turn comes
        return keras.ops.convert_to_tensor(batches[start // batch_size][0])

    def blocks(starts):
        for start, batch in zip(starts, prefetch(fetch, starts)):
            yield np.asarray(predict(batch))[: len(images) - start]

    return build_or_load_array(file, blocks, batch_size)


def cache_activations(lower, boundary, images, batch_size, cache):
    """{split: what `lower` gives for images}, made where the folder `cache` lacks it. boundary: the
    last layer of `lower`. images: {split: decoded ones}. None where there is no room."""
    # by the key of the decoded images (files, image size) and all else that decides the last digit
    precision = lower.get_layer("block1_conv1").compute_dtype
    digest = weights_digest(lower, convolutions(lower))[:16]
    key = f"{boundary}-{precision}-{keras.backend.backend()}-{digest}"
    files = {}
    for split, array in images.items():
        path = Path(cache) / f"{Path(array.filename).stem}-{len(array)}-{key}.npy"
        files[split] = output_file(lower, len(array), path, f"{boundary} of {split} images")

    size = sum(file.missing for file in files.values())
    if size:
        free = free_space(path)
        space = f"{size / 1e9:.2f} GB; {free / 1e9:.1f} GB are free in {cache}"
        if size >= MAX_DISK_SHARE * free:
            print(
                f"Not enough disk space to cache the frozen layers' output ({space}): "
                "training works, but each epoch takes longer.",
                flush=True,
            )
            return None
        print(f"Caching the frozen layers' output ({space}).", flush=True)

    return {split: cache_outputs(lower, images[split], files[split], batch_size) for split in files}
