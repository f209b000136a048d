"""ExtractionOptions of all 12,416 features of VGG16 at 224x224: ours, plain Keras, and plain PyTorch.

    python benchmarks/extraction.py                 images a second, and the ratios
    python benchmarks/extraction.py --memory        peak memory with 50 and with 1,000 images

plain Keras: the raw outputs of the 15 layers by `predict`, averaged in NumPy. PyTorch (where it is
installed): inference mode, channels_last, pooled on the way, the same weights. Each measurement is a
process of its own, they take turns, and each warms up first. The matrix product is 4096 x 4096 x 4096 in
TensorFlow and in NumPy, the faster of the two; VGG16 takes 30.9 GFLOP an image.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import (
    PICTURES,
    alternate,
    describe_machine,
    peak_memory,
    pictures,
    report,
    run_worker,
    spread,
)

from transfer.flags import script_parser
from transfer.weights import load_weights, with_precision

GFLOP = 30.9
METHODS = ("plain", "ours", "ours-bfloat16", "torch", "torch-bfloat16", "matmul")
RATIOS = [("ours", other) for other in ("plain", "matmul", "torch")]
RATIOS += [("ours-bfloat16", other) for other in ("plain", "torch-bfloat16")]


def keras_network():
    import common

    model = common.build_model(224, 1000, "fc")
    load_weights(model, "none", 0, common.convolutions(model) + ["fc1", "fc2"])
    return common, model


def measure_matmul(*_):
    from common import ops

    a = np.random.default_rng(0).normal(size=(4096, 4096)).astype("float32")
    b = ops.convert_to_tensor(a)
    rates = []
    for product in (lambda: np.asarray(ops.matmul(b, b))[0, 0], lambda: (a @ a)[0, 0]):
        product()
        start = time.perf_counter()
        for _ in range(4):
            product()
        rates.append(4 * 2 * 4096**3 / 1e9 / (time.perf_counter() - start))
    return max(rates) / GFLOP, None


def extract_ours(images, batch_size, precision):
    from transfer import features

    common, model = keras_network()
    model = with_precision(model, precision)
    pooled, _ = common.feature_extractor(model, common.layer_names(model, "all"))
    folder = tempfile.TemporaryDirectory()

    def extract(count):
        path = Path(folder.name) / f"{time.time_ns()}.npy"
        file = features.output_file(pooled, count, path, "features")
        return features.cache_outputs(pooled, images[:count], file, batch_size)

    return extract


def by_batches(produce, batch_size):
    """A function count -> features of the first `count` images, from one (start, stop) -> features."""

    def extract(count):
        starts = range(0, count, batch_size)
        return np.concatenate([produce(start, min(start + batch_size, count)) for start in starts])

    return extract


def extract_plain(images, batch_size):
    common, model = keras_network()
    keras = common.keras
    names = common.layer_names(model, "all")
    raw = keras.Model(model.input, [model.get_layer(name).output for name in names])

    def extract(count):
        outputs = raw.predict(images[:count].astype("float32"), batch_size=batch_size, verbose=0)
        return np.concatenate([o.mean(axis=(1, 2)) if o.ndim == 4 else o for o in outputs], axis=1)

    return extract


def extract_torch(images, batch_size, dtype):
    import torch
    from plain_torch import plain_torch, pooled_features, preprocessed

    common, model = keras_network()
    network = plain_torch(model).eval().to(dtype)
    features = pooled_features(network, common.layer_names(model, "all"))
    del model

    def produce(start, stop):
        with torch.inference_mode():
            return features(preprocessed(torch.from_numpy(images[start:stop])).to(dtype)).numpy()

    return by_batches(produce, batch_size)


def measure_features(method, images, batch_size):
    """(images a second, features of the first batch) of one method."""
    if method.startswith("torch"):
        import torch

        dtype = torch.bfloat16 if method.endswith("bfloat16") else torch.float32
        extract = extract_torch(images, batch_size, dtype)
    elif method == "plain":
        extract = extract_plain(images, batch_size)
    else:
        precision = "bfloat16" if method.endswith("bfloat16") else "float32"
        extract = extract_ours(images, batch_size, precision)
    first = np.array(extract(batch_size))  # warms up and traces
    start = time.perf_counter()
    extract(len(images))
    return len(images) / (time.perf_counter() - start), first


def work(args):
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_matmul if args.method == "matmul" else measure_features
        rate, first = measure(args.method, pictures(args.images, folder), args.batch_size)
    if args.save and first is not None:
        np.save(args.save, first)
    report(images_per_second=rate, peak_MB=peak_memory())


def compare_features(args, methods):
    """Relative difference of each method's features from plain Keras', by the norm of each layer set."""
    with tempfile.TemporaryDirectory() as folder:
        features = {}
        for method in methods:
            path = f"{folder}/{method}.npy"
            flags = (
                "--method",
                method,
                "--images",
                args.batch_size,
                "--batch-size",
                args.batch_size,
            )
            if run_worker(__file__, *flags, "--save", path):
                features[method] = np.load(path)
    plain = features.pop("plain")
    for method, found in features.items():
        difference = np.linalg.norm(found - plain) / np.linalg.norm(plain)
        print(f"  {method}: {difference:.1e} of the norm of plain Keras' features")


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS), help="default: %(default)s")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.method:
        return work(args)
    print(f"{describe_machine()}\n{args.images} {PICTURES}, batches of {args.batch_size}")
    if args.memory:
        for count in (50, 1000):
            flags = ("--method", "ours", "--images", count, "--batch-size", args.batch_size)
            print(f"  {count} images: {run_worker(__file__, *flags)['peak_MB']:.0f} MB at the peak")
        return None
    methods = args.methods.split(",")
    flags = {
        m: ("--method", m, "--images", args.images, "--batch-size", args.batch_size)
        for m in methods
    }
    found = alternate(__file__, flags, args.rounds)
    rates = {name: [f["images_per_second"] for f in figures] for name, figures in found.items()}
    print(f"\n{'':20}{'images a second: median (minimum to maximum)':48}peak memory, MB")
    for name, values in rates.items():
        print(f"{name:20}{spread(values):48}{max(f['peak_MB'] for f in found[name]):.0f}")
    print("\nRatios of medians")
    for one, other in RATIOS:
        if one in rates and other in rates:
            print(f"  {one} / {other}: {np.median(rates[one]) / np.median(rates[other]):.2f}")
    if "plain" in rates:
        print("\nEqual features")
        compare_features(args, [name for name in rates if name != "matmul"])
    return None


if __name__ == "__main__":
    main()
