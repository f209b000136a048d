"""How fast a device is kept at its work: ours on each backend beside plain PyTorch, at 224x224.

    python benchmarks/gpu.py --backends jax torch          those that are installed; also tensorflow
    python benchmarks/gpu.py --images 16 --image-size 64 --batch-size 8 --precisions float32   on a CPU

One process for each backend does all tasks on pictures of noise. extraction: all features of VGG16 (12,416
at 224). dense: head iii on stored activations of block5_pool. unfrozen: all of VGG16 with head iii, and
augmented. Ours is what the commands call, from decoded images to written weights, with the share of its
time that drawing batches (beside the device's work) and writing take. Plain PyTorch is at its best: images
on the device before it starts, channels_last, autocast, with and without torch.compile. Images a second are
of the passes after the first, which compiles. The share is of the backend's own matrix product in that
precision: convolutions and dense layers counted, in training three times.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from measure import describe_machine, fit_begins

from transfer.flags import script_parser

CLASSES, RATE, PLAIN = 29, 1e-5, "plain"
TASKS = ("extraction", "dense", "unfrozen", "augmented")
PRECISIONS = ("float32", "bfloat16")


def flop(model, training):
    """Floating-point operations that an image takes: a product and a sum for each weight and position."""
    weighted = [layer for layer in model.layers if hasattr(layer, "kernel")]
    forward = sum(
        np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:-1]) for layer in weighted
    )
    return 2 * forward * (3 if training else 1)


def build(args, task, precision):
    """The Keras model of a task, with drawn weights, in its precision."""
    import common
    from transfer.weights import load_weights, with_precision

    common.keras.utils.set_random_seed(0)
    classes, head = (1000, "fc") if task == "extraction" else (CLASSES, "iii")
    model = common.build_model(args.image_size, classes, head)
    load_weights(model, "none", 0)
    return with_precision(model, precision)


def product(precision):
    """Floating-point operations a second of this backend's matrix product."""
    import common
    from transfer.devices import accelerators

    ops = common.ops
    size = 8192 if accelerators(common.keras.backend.backend()) else 2048
    a, seconds = ops.cast(ops.ones((size, size)), precision), []
    for _ in range(5):
        start = time.perf_counter()
        np.asarray(ops.cast(ops.matmul(a, a)[0, 0], "float32"))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def extract(args, model, images, folder):
    """Seconds of each pass over the images, in the batches that extract_features.py takes."""
    import common
    from transfer import activations

    pooled, _ = common.feature_extractor(model, common.layer_names(model, "all"))
    batch, seconds = args.extraction_batch or activations.device_batch(args.batch_size), []
    for number in range(args.epochs):
        start = time.perf_counter()
        file = activations.output_file(pooled, len(images), folder / f"{number}.npy", "features")
        activations.cache_outputs(pooled, images, file, batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def train_task(args, model, images, folder):
    """Seconds of each epoch as finetune.py trains it, and what of the later ones is outside the device."""
    import common
    from transfer import train
    from transfer.study import ALL_BLOCKS

    drawing, writing, moments, task = [], [], [], folder.name
    labels = np.random.default_rng(0).integers(0, CLASSES, len(images))
    some = slice(args.batch_size)
    splits = {"train": SimpleNamespace(images=images, labels=labels)}
    splits["val"] = SimpleNamespace(images=images[some], labels=labels[some])

    def draw(batches, index, original=common.Batches.__getitem__):
        start = time.perf_counter()
        batch = original(batches, index)
        drawing.append(time.perf_counter() - start)
        return batch

    def end_epoch(resume, *given, original=train.Checkpoint.end_epoch):
        start = time.perf_counter()
        original(resume, *given)
        moments.append(time.perf_counter())
        writing.append(moments[-1] - start)
        if len(moments) == 2:  # the first epoch, which compiles, is not counted
            drawing.clear()
            writing.clear()

    blocks = () if task == "dense" else ALL_BLOCKS
    stage = train.Stage(
        "", blocks, RATE, args.epochs, args.batch_size, 0, augment=task == "augmented"
    )
    dataset = SimpleNamespace(name="noise", splits=splits, labels=range(CLASSES))
    watched = mock.patch.object(train.Checkpoint, "end_epoch", end_epoch)
    with fit_begins(moments), watched, mock.patch.object(common.Batches, "__getitem__", draw):
        train.train_stage(model, stage, dataset, str(folder), train.Checkpoint.read(folder))
    later, seconds = moments[-1] - moments[1], np.diff(moments)
    return (
        seconds,
        f", drawing batches {sum(drawing) / later:.0%}, writing {sum(writing) / later:.0%}",
    )


def torch_work(args, task, precision, network, images, compiled):
    """A function that gives the features of some rows to the host, or trains all of the network on them."""
    import torch
    from plain_torch import pooled_features, preprocessed

    half = torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    compiled = torch.compile if compiled else (lambda function: function)
    names = [
        name for name, _ in network.named_children() if "conv" in name or name in ("fc1", "fc2")
    ]
    if task == "extraction":
        features = compiled(pooled_features(network.eval(), names))

        def extract(rows):
            with torch.inference_mode(), half:
                features(preprocessed(images[rows])).cpu()

        return extract
    labels = torch.arange(len(images), device=images.device) % CLASSES
    penalised = [getattr(network, name).weight for name in ("fc1", "fc2", "fc3")]
    optimizer = torch.optim.Adam(network.parameters(), RATE, eps=1e-7, fused=images.is_cuda)

    def forward(rows):
        with half:
            scores = network.train()(preprocessed(images[rows]))
        loss = torch.nn.functional.cross_entropy(scores.float(), labels[rows])
        return loss + 0.01 * sum(weight.square().sum() for weight in penalised)

    forward = compiled(forward)

    def train(rows):
        optimizer.zero_grad()
        forward(rows).backward()
        optimizer.stage()

    return train


def torch_seconds(args, task, precision, model, images, compiled):
    """Seconds of each pass or epoch of the same network in PyTorch alone."""
    import torch
    from plain_torch import plain_torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    network, images = plain_torch(model).to(device), torch.from_numpy(np.array(images)).to(device)
    work, seconds = torch_work(args, task, precision, network, images, compiled), []
    size = 256 if images.is_cuda and task == "extraction" else args.batch_size
    for _ in range(args.epochs):
        start = time.perf_counter()
        for rows in torch.randperm(len(images), device=device).split(size):
            work(rows)
        if images.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def measure(args, images, precision, task, at_most):
    """Print the lines of one task in this process. at_most: see `product`."""
    plain = args.side == PLAIN
    for compiled in (False, True) if plain else (False,):
        begun, about = time.perf_counter(), ""
        model = build(args, task, precision)
        built = time.perf_counter() - begun
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder) / task
            folder.mkdir()
            if plain:
                seconds = torch_seconds(args, task, precision, model, images, compiled)
            elif task == "extraction":
                seconds = extract(args, model, images, folder)
            else:
                seconds, about = train_task(args, model, images, folder)
        usual = float(np.median(seconds[1:]))
        rate = len(images) / usual
        about += f"; building {built:.1f} s, compiling {seconds[0] - usual:.1f} s"
        if task != "dense":
            share = rate * flop(model, task != "extraction") / at_most
            about = f", {share:.0%} of {at_most / 1e12:.3g} TFLOP/s" + about
        name = args.side + " PyTorch" * plain + ", compiled" * compiled
        print(f"  {precision}, {task:11}{name:25}{rate:8.5g} images a second{about}", flush=True)


def work(args):
    """All tasks of one side, in this process."""
    begun = time.perf_counter()
    import common  # noqa: F401, Keras first

    print(f"{args.side}: importing took {time.perf_counter() - begun:.1f} s", flush=True)
    shape = (args.images, args.image_size, args.image_size, 3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.npy"
        np.save(path, np.random.default_rng(0).integers(0, 256, shape, "uint8"))
        images = np.load(path, mmap_mode="r")
        for precision in args.precisions:
            at_most = product(precision)
            for task in args.tasks:
                if args.side != PLAIN or task in ("extraction", "unfrozen"):
                    measure(args, images, precision, task, at_most)


def main():
    parser = script_parser(__doc__)
    backends = {"nargs": "+", "default": ["jax"], "help": "default: jax"}
    parser.add_argument("--backends", choices=("tensorflow", "jax", "torch"), **backends)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS[1:])
    parser.add_argument(
        "--images", type=int, default=2048, help="whole batches (default: %(default)s)"
    )
    parser.add_argument("--image-size", type=int, default=224, help="default: %(default)s")
    parser.add_argument(
        "--batch-size", type=int, default=32, help="of training (default: %(default)s)"
    )
    parser.add_argument(
        "--extraction-batch", type=int, help="default: what extract_features.py takes"
    )
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return work(args)
    pictures = f"{args.images} pictures of noise of {args.image_size} pixels a side"
    print(f"{describe_machine()}\n{pictures}, batches of {args.batch_size}", flush=True)
    for side in (*args.backends, PLAIN):
        environment = os.environ | {"KERAS_BACKEND": "torch" if side == PLAIN else side}
        subprocess.run([sys.executable, *sys.argv, "--side", side], env=environment)
    return None


if __name__ == "__main__":
    main()
