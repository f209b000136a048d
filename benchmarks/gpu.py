"""How fast a device is kept at its work: ours on each backend beside plain PyTorch.

    python benchmarks/gpu.py --backends jax torch          those that are installed; also tensorflow
    python benchmarks/gpu.py --backends tensorflow --tasks unfrozen --precisions float32 \
        --images 64 --image-size 48 112 224 --rounds 3             training, on a CPU

extraction: all features of VGG16 (12,416 at 224). unfrozen: training all of VGG16 with head iii.
Each measurement is a process of its own. Ours is what the commands call, from decoded images to
written files; "loading" is the share of its time that batches take (beside the device's work),
"writing" that of the ends of epochs. Plain PyTorch is at its best: images on the device before it
starts, channels_last, a fused Adam, half precision where asked, with and without torch.compile
(`--plain`). Images a second are of the passes after the first, which compiles. "busy" is the share
of the backend's own matrix product in that precision: convolutions and dense layers counted, in
training three times.
"""

import os
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from measure import PICTURES, alternate, describe_machine, pictures, spread

from transfer.flags import script_parser

BACKENDS = ("tensorflow", "jax", "torch")
PLAIN = ("plain PyTorch", "plain PyTorch, compiled")
TASKS = ("extraction", "unfrozen")
PRECISIONS = ("float32", "bfloat16")
CLASSES = 29
PASSES = 4  # over the images, the first one not counted


def time_ours(model, task, images, batch_size, folder):
    """Seconds of each pass as the commands make it, and the shares of loading and writing."""
    import ours

    from transfer import activations
    from transfer.study import ALL_BLOCKS

    if task == "unfrozen":
        splits = {"train": images, "val": images[:1]}
        found = ours.time_training(model, splits, ALL_BLOCKS, PASSES, folder / "run")
        later = sum(found["epochs"][1:])
        shares = {"loading": found["loading"] / later, "writing": found["writing"] / later}
        return found["epochs"], shares

    batch_size = batch_size or activations.device_batch(ours.BATCH_SIZE)
    extract = ours.our_extractor(model, batch_size, folder)
    return [seconds_of(extract, images) for _ in range(PASSES)], {}


def time_torch(model, task, images, precision, compiled):
    """Seconds of each pass of the same network in PyTorch alone."""
    import ours
    import torch
    from plain_torch import plain_torch, torch_extractor, torch_trainer

    from transfer import activations

    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(np.array(images)).to(device)
    network = plain_torch(model).to(device)
    if task == "unfrozen":
        size = ours.BATCH_SIZE
        work = torch_trainer(network, images, CLASSES, precision, compiled)
    else:
        size = activations.device_batch(ours.BATCH_SIZE)
        work = torch_extractor(network, images, precision, compiled)

    def go_through(order):
        for rows in order.split(size):
            work(rows)
        if images.is_cuda:
            torch.cuda.synchronize()

    orders = [torch.randperm(len(images), device=device) for _ in range(PASSES)]
    return [seconds_of(go_through, order) for order in orders]


def seconds_of(function, argument):
    start = time.perf_counter()
    function(argument)
    return time.perf_counter() - start


def measure_device(side, task, precision, image_size, args):
    """The figures of one task: `side` is a backend, or one of PLAIN."""
    os.environ["KERAS_BACKEND"] = "torch" if side in PLAIN else side
    import ours

    from transfer.devices import accelerators

    classes, head = (1000, "fc") if task == "extraction" else (CLASSES, "iii")
    model = ours.random_vgg16(image_size, classes, head, precision)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        images = pictures(folder / "pictures.npy", args.images, image_size)
        shares = {}
        if side in PLAIN:
            seconds = time_torch(model, task, images, precision, side == PLAIN[1])
        else:
            seconds, shares = time_ours(model, task, images, args.extraction_batch, folder)

    usual = float(np.median(seconds[1:]))
    size = 8192 if accelerators() else 2048
    peak = ours.matrix_product(size, precision)
    work = ours.flop(model) * (1 if task == "extraction" else 3)
    return {
        "images a second": args.images / usual,
        "busy": args.images / usual * work / peak,
        "TFLOP/s of the matrix product": peak / 1e12,
        "compiling": seconds[0] - usual,
        **shares,
    }


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--backends", nargs="+", choices=BACKENDS, default=["jax"], help="default: jax")
    add("--plain", nargs="+", choices=PLAIN, default=PLAIN, help="default: both")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: both")
    text = "default: bfloat16"
    add("--precisions", nargs="+", choices=PRECISIONS, default=["bfloat16"], help=text)
    add("--images", type=int, default=2048, help="whole batches (default: %(default)s)")
    add("--image-size", type=int, nargs="+", default=[224], help="pixels a side (default: 224)")
    add("--extraction-batch", type=int, help="default: what extract_features.py takes")
    add("--rounds", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()

    print(f"{describe_machine()}\n{args.images} {PICTURES}")
    workers = {}
    sides = (*args.backends, *args.plain)
    for size, task, precision, side in product(args.image_size, args.tasks, args.precisions, sides):
        name = f"{side}, {precision}, {task}, {size} pixels"
        workers[name] = (measure_device, side, task, precision, size, args)
    found = alternate(workers, args.rounds)
    for name, rounds in found.items():
        print(f"{name}: {spread([figures['images a second'] for figures in rounds])}")


if __name__ == "__main__":
    main()
