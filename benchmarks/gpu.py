"""How fast a device is kept at its work: ours on each backend beside plain PyTorch, at 224x224.

    python benchmarks/gpu.py --backends jax torch          those that are installed; also tensorflow
    python benchmarks/gpu.py --images 16 --image-size 64   to try it out on a CPU

extraction: all features of VGG16 (12,416 at 224). dense: head iii on stored activations of block5_pool.
unfrozen: all of VGG16 with head iii, and the same augmented. Ours is what the commands call, fed from disk;
plain PyTorch is at its best: images on the device before it starts, channels_last, autocast, with and
without torch.compile. Images a second of the epochs after the first, which traces and compiles: what that
takes beside the pass itself, and what importing and building take, is shown as seconds. The share is of the
device's own matrix product in that precision, convolutions and dense layers counted, in training three
times. Each measurement is a process of its own, they take turns.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import PICTURES, alternate, describe_machine, pictures, report, run_worker, spread

CLASSES, RATE = 29, 1e-5
TASKS = ("extraction", "dense", "unfrozen", "augmented")
PRECISIONS = ("float32", "bfloat16")
PLAIN, COMPILED = "plain PyTorch", "plain PyTorch, compiled"


def flop(model, training):
    """Floating-point operations that an image takes: a product and a sum for each weight and position."""
    total = 0
    for layer in model.layers:
        if layer.get_weights() and len(layer.get_weights()[0].shape) > 1:
            kernel, *_ = layer.get_weights()
            total += 2 * kernel.size * np.prod(layer.output.shape[1:-1], dtype=float)
    return total * (3 if training else 1)


def build(args):
    """The Keras model of a task, with drawn weights, in its precision."""
    import common
    from transfer import network

    common.keras.utils.set_random_seed(0)
    extraction = args.task == "extraction"
    model = common.build_model(
        args.image_size, 1000 if extraction else CLASSES, "fc" if extraction else "iii"
    )
    network.load_weights(model, "none", 0)
    return network.with_precision(model, args.precision)


# Ours ------------------------------------------------------------------------------------


def extract(args, model, images):
    """Seconds of each pass over the images."""
    import common
    from transfer import features

    pooled, _ = common.pooled_model(model, common.feature_layers(model, "all"))
    seconds, folder = [], tempfile.TemporaryDirectory()
    for number in range(args.epochs):
        start, path = time.perf_counter(), Path(folder.name) / f"{number}.npy"
        file = features.output_file(pooled, len(images), path, "features")
        features.keep_outputs(pooled, images, file, args.batch_size)
        seconds.append(time.perf_counter() - start)
    return seconds


def train_task(args, model, images, folder):
    """Seconds of each epoch, as finetune.py trains it."""
    import keras

    import common
    from transfer import train
    from transfer.study import ALL_BLOCKS, AUGMENTATION

    class Clock(keras.callbacks.Callback):
        moments = [time.perf_counter()]

        def on_epoch_end(self, epoch, logs=None):
            self.moments.append(time.perf_counter())

    augmented = args.task == "augmented"
    blocks = () if args.task == "dense" else ALL_BLOCKS
    common.set_trainable(model, blocks)
    if args.task == "dense":
        lower, trained = common.split_model(model, "block5_pool")
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal((args.images, *lower.output.shape[1:]), "float32")
        np.save(f"{folder}/activations.npy", np.maximum(drawn - 0.43, 0))
        images = np.load(f"{folder}/activations.npy", mmap_mode="r")
    else:
        trained = (
            common.augmented_model(model) if augmented else common.keras.Model(model.input, model.output)
        )
    labels = np.random.default_rng(0).integers(0, CLASSES, len(images))
    augment = AUGMENTATION if augmented else None
    batches = common.Batches(images, labels, args.batch_size, seed=0, augment=augment)
    step = train.Step("", blocks, RATE, args.epochs, args.batch_size, 0, augment=augmented)
    train.compile_step(trained, step, len(batches), common.Share())
    clock = Clock()
    trained.fit(batches, epochs=args.epochs, shuffle=False, verbose=0, callbacks=[clock])
    return np.diff(clock.moments)


# Plain PyTorch ---------------------------------------------------------------------------


def torch_extraction(args, model, network, images):
    """A function that gives the features of some rows to the host."""
    import torch
    from plain_torch import pooled_features, preprocessed

    import common

    half = torch.autocast(images.device.type, torch.bfloat16, enabled=args.precision == "bfloat16")
    features = pooled_features(network.eval(), common.feature_layers(model, "all"))
    features = torch.compile(features) if args.backend == COMPILED else features

    def work(rows):
        with torch.inference_mode(), half:
            features(preprocessed(images[rows])).cpu()

    return work


def torch_training(args, network, images):
    """A function that trains all of the network on some rows."""
    import torch
    from plain_torch import preprocessed

    half = torch.autocast(images.device.type, torch.bfloat16, enabled=args.precision == "bfloat16")
    labels = torch.arange(len(images), device=images.device) % CLASSES
    dense = ("fc1", "fc2", "fc3")
    penalised = [module.weight for name, module in network.named_children() if name in dense]
    optimizer = torch.optim.Adam(network.parameters(), RATE, eps=1e-7, fused=images.is_cuda)

    def forward(rows):
        with half:
            scores = network.train()(preprocessed(images[rows]))
        loss = torch.nn.functional.cross_entropy(scores.float(), labels[rows])
        return loss + 0.01 * sum(weight.square().sum() for weight in penalised)

    forward = torch.compile(forward) if args.backend == COMPILED else forward

    def work(rows):
        optimizer.zero_grad()
        forward(rows).backward()
        optimizer.step()

    return work


def torch_seconds(args, model, images):
    """Seconds of each pass or epoch of the same network in PyTorch alone."""
    import torch
    from plain_torch import plain_torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    network, images = plain_torch(model).to(device), torch.from_numpy(np.array(images)).to(device)
    if args.task == "extraction":
        work = torch_extraction(args, model, network, images)
    else:
        work = torch_training(args, network, images)
    seconds = []
    for _ in range(args.epochs):
        start = time.perf_counter()
        for rows in torch.randperm(len(images), device=device).split(args.batch_size):
            work(rows)
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def torch_product(precision):
    """Floating-point operations a second of the matrix product of this device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size, dtype = (8192 if device == "cuda" else 2048), getattr(torch, precision)
    a, seconds = torch.randn(size, size, device=device, dtype=dtype), []
    for _ in range(10):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


# -----------------------------------------------------------------------------------------


def work(args):
    begun, plain = time.perf_counter(), args.backend in (PLAIN, COMPILED)
    os.environ["KERAS_BACKEND"] = "torch" if plain else args.backend
    if args.task == "product":
        return report(flop=torch_product(args.precision))
    with tempfile.TemporaryDirectory() as folder:
        model, images = build(args), pictures(args.images, folder, args.image_size)
        operations = flop(model, args.task != "extraction")
        built = time.perf_counter() - begun
        if plain:
            seconds = torch_seconds(args, model, images)
        elif args.task == "extraction":
            seconds = extract(args, model, images)
        else:
            seconds = train_task(args, model, images, folder)
    usual = float(np.median(seconds[1:]))
    found = {"images_per_second": args.images / usual, "flop": operations}
    return report(**found, seconds_building=built, seconds_compiling=seconds[0] - usual)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", default=("jax", "torch"), metavar="B")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    for hidden in ("--task", "--precision", "--backend"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return work(args)
    size = f"{args.image_size}x{args.image_size}"
    print(f"{describe_machine()}\n{args.images} {PICTURES} at {size}, batches of {args.batch_size}")
    shared = ["--images", args.images, "--image-size", args.image_size]
    shared += ["--batch-size", args.batch_size, "--epochs", args.epochs]
    for precision in args.precisions:
        flags = ("--precision", precision, *shared, "--backend")
        product = run_worker(__file__, *flags, PLAIN, "--task", "product")
        for task in args.tasks:
            methods = [*args.backends, *([PLAIN, COMPILED] if task in ("extraction", "unfrozen") else [])]
            print(f"{task}, {precision}", flush=True)
            found = alternate(__file__, {m: (*flags, m, "--task", task) for m in methods}, args.rounds)
            for name, figures in found.items():
                rates = [f["images_per_second"] for f in figures]
                share = ""
                if product and task != "dense":
                    share = (
                        f", {np.median(rates) * figures[0]['flop'] / product['flop']:.0%} of the product"
                    )
                print(f"  {name:25}{spread(rates)} images a second{share}", flush=True)
    return None


if __name__ == "__main__":
    main()
