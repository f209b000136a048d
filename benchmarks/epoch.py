"""What an epoch of dense layers costs at MAMe's size, and how much of that is not training.

    python benchmarks/epoch.py

Head iii on block5_pool's activations of 20,300 + 1,450 images, 7x7x512 each, drawn and on disk (2.2 GB), by
`training.train_steps` as a run does it: weights, optimizer, state, history and curves after each epoch. Not
training is what lies between the end of an epoch's validation and the start of the next one.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from measure import describe_machine, spread

COUNTS, SHAPE, CLASSES = {"train": 20_300, "val": 1_450}, (7, 7, 512), 29


def draw_activations(path, count):
    """Write float32 (count, 7, 7, 512), a third of it above 0 as behind a rectifier; a memory map of it."""
    rng = np.random.default_rng(count)
    array = np.lib.format.open_memmap(path, "w+", "float32", (count, *SHAPE))
    for start in range(0, count, 500):
        rows = rng.standard_normal((min(500, count - start), *SHAPE), "float32")
        array[start : start + 500] = np.maximum(rows - 0.43, 0)
    array.flush()
    return np.load(path, mmap_mode="r")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    from transfer.activations import Kept
    from transfer.recipes import Step

    import common
    from transfer import training, weights

    keras = common.import_keras()
    keras.utils.set_random_seed(0)

    class Clock(keras.callbacks.Callback):
        begins, ends = [], []

        def on_epoch_begin(self, epoch, logs=None):
            self.begins.append(time.perf_counter())

        def on_test_end(self, logs=None):
            self.ends.append(time.perf_counter())

    model = common.build_model(224, CLASSES, "iii")
    weights.load_weights(model, "none", 0)
    print(f"{describe_machine()}\n{COUNTS['train']} x {np.prod(SHAPE)} activations, head iii")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        folder, rng = Path(folder), np.random.default_rng(0)
        inputs = {split: draw_activations(folder / f"{split}.npy", n) for split, n in COUNTS.items()}
        splits = {n: SimpleNamespace(labels=rng.integers(0, CLASSES, c)) for n, c in COUNTS.items()}
        _, upper = common.split_model(model, "block5_pool")
        training.trained_part = lambda *_: (upper, inputs)
        clock, callbacks = Clock(), training.training_callbacks
        training.training_callbacks = lambda *given: [clock, *callbacks(*given)]
        dataset = SimpleNamespace(name="drawn", notice=None, splits=splits)
        step = Step("dense", (), 1e-4, args.epochs, 32, 0)
        training.train_steps(model, [step], dataset, Kept("none"), folder)
    epochs = np.diff(clock.begins)[1:]  # the first one traces
    between = np.subtract(clock.begins[1:], clock.ends[: args.epochs - 1])[1:]
    per_thousand = 1000 * np.median(epochs) / COUNTS["train"]
    print(f"\n  an epoch: {spread(epochs)} s, {per_thousand:.3f} s per 1,000 images")
    print(f"  of that not training: {spread(between)} s, {100 * np.median(between / epochs):.1f}%")


if __name__ == "__main__":
    main()
