"""All 12,416 features of VGG16 at 224x224: ours, plain Keras, and plain PyTorch.

    python benchmarks/extraction.py                 images a second, and the ratios
    python benchmarks/extraction.py --memory        peak memory with 50 and with 1,000 images

plain Keras: the raw outputs of the 15 layers by `predict`, averaged in NumPy. PyTorch (where it is
installed): inference mode, channels_last, pooled on the way, the same weights. Each measurement is
a process of its own, they take turns, and each warms up first. The matrix product is the backend's,
of 4096 x 4096 x 4096 in float32; VGG16 takes 30.9 GFLOP an image.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from measure import PICTURES, alternate, describe_machine, peak_memory, pictures, spread

from transfer.console import print_table
from transfer.flags import script_parser

FLOP = 30.9e9  # of VGG16 for one image of 224 pixels
RATIOS = (
    ("ours", "plain"),
    ("ours", "matmul"),
    ("ours", "torch"),
    ("ours-bfloat16", "plain"),
    ("ours-bfloat16", "torch-bfloat16"),
)


def extract_ours(model, precision, batch_size, folder):
    from ours import our_extractor

    return our_extractor(model, batch_size, folder)


def extract_with_keras(model, precision, batch_size, folder):
    """The obvious way: all outputs of all layers, averaged afterwards."""
    import common
    from transfer.backend import keras

    layers = [model.get_layer(name) for name in common.layer_names(model, "all")]
    raw = keras.Model(model.input, [layer.output for layer in layers])

    def extract(images):
        outputs = raw.predict(images.astype("float32"), batch_size=batch_size, verbose=0)
        pooled = [o.mean(axis=(1, 2)) if o.ndim == 4 else o for o in outputs]
        return np.concatenate(pooled, axis=1)

    return extract


def extract_with_torch(model, precision, batch_size, folder):
    import torch
    from plain_torch import plain_torch, torch_extractor

    network = plain_torch(model)

    def extract(images):
        features = torch_extractor(network, torch.from_numpy(np.array(images)), precision)
        batches = torch.arange(len(images)).split(batch_size)
        return np.concatenate([features(rows).numpy() for rows in batches])

    return extract


METHODS = {  # name: (what makes a function from images to their features, the precision)
    "plain": (extract_with_keras, "float32"),
    "ours": (extract_ours, "float32"),
    "ours-bfloat16": (extract_ours, "bfloat16"),
    "torch": (extract_with_torch, "float32"),
    "torch-bfloat16": (extract_with_torch, "bfloat16"),
}


def measure_method(method, count, batch_size):
    """Images a second, peak memory, and the features of the first batch, by one method."""
    from ours import random_vgg16

    make, precision = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        images = pictures(folder / "pictures.npy", count)
        model = random_vgg16(224, 1000, "fc", precision)
        extract = make(model, precision, batch_size, folder)
        first = np.array(extract(images[:batch_size]))  # warms up and traces
        start = time.perf_counter()
        extract(images)
        seconds = time.perf_counter() - start
    return {"images a second": count / seconds, "peak MB": peak_memory(), "features": first}


def measure_product():
    from ours import matrix_product

    rate = matrix_product(4096, "float32") / FLOP
    return {"images a second": rate, "peak MB": peak_memory()}


def print_results(found):
    """The table, the ratios, and how far features are from plain Keras', by their norm."""
    rates = {}
    rows = []
    for name, figures in found.items():
        rates[name] = [f["images a second"] for f in figures]
        memory = max(f["peak MB"] for f in figures)
        rows.append((name, spread(rates[name]), f"{memory:.0f}"))
    print()
    print_table(("", "images a second: median (minimum to maximum)", "peak memory, MB"), rows)

    for one, other in RATIOS:
        if one in rates and other in rates:
            ratio = np.median(rates[one]) / np.median(rates[other])
            print(f"  {one} / {other}: {ratio:.2f} (medians)")

    features = {name: f[0]["features"] for name, f in found.items() if "features" in f[0]}
    if "plain" in features:
        print("\nDistance from plain Keras' features, as a share of their norm")
        plain = features.pop("plain")
        for name, others in features.items():
            print(f"  {name}: {np.linalg.norm(others - plain) / np.linalg.norm(plain):.1e}")


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    every = ",".join((*METHODS, "matmul"))
    add("--images", type=int, default=64, help="number of images (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images per batch (default: %(default)s)")
    add("--rounds", type=int, default=3, help="measurements of each (default: %(default)s)")
    add("--methods", default=every, help="default: %(default)s")
    add("--memory", action="store_true", help="peak memory instead of speed")
    args = parser.parse_args()

    workers = {}
    if args.memory:
        args.rounds = 1
        for count in (50, 1000):
            workers[f"ours, {count} images"] = (measure_method, "ours", count, args.batch_size)
    else:
        for name in args.methods.split(","):
            workers[name] = (measure_method, name, args.images, args.batch_size)
        if "matmul" in workers:
            workers["matmul"] = (measure_product,)

    print(f"{describe_machine()}\n{PICTURES}, batches of {args.batch_size}")
    print_results(alternate(workers, args.rounds))


if __name__ == "__main__":
    main()
