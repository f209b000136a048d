"""Is a fast device kept busy? One that only waits, as long as a GPU that takes 2,000 images a second would.

    KERAS_BACKEND=tensorflow python benchmarks/feeding.py       (or jax, or torch)

An epoch of 20,300 images of 224x224 (drawn ones, repeated from 4,096 on disk), augmented and not, through
`fitting.Feed` and Keras' own `fit`, with the callback that shows how far it is. Busy is the time for which
the device waits, a share of the epoch: from the start of `fit` to its end, the first batch included. On
JAX and PyTorch it takes steps into its stream, at most 32, as a GPU does, and who asks for a loss waits;
on TensorFlow each step takes its time within the compiled function. 'Every batch looked at' is what Keras
does where a callback acts after batches (ModelCheckpoint counts as one), and always on TensorFlow.
Then the same device where features and frozen activations are computed and written to disk.
"""

import argparse
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measure import describe_machine, spread

IMAGES, STORED, SIZE = 20_300, 4_096, 224
IN_FLIGHT = 32  # steps that a device's stream takes before the next one has to wait


class Repeated:
    """An array of `count` images, of which only some lie on disk."""

    def __init__(self, path, count):
        self.images, self.count = np.load(path, mmap_mode="r"), count

    def __len__(self):
        return self.count

    def __getitem__(self, rows):
        return self.images[rows % len(self.images)]


class Device:
    """A stream of steps that are waited for, one after the other."""

    def __init__(self, rate):
        self.rate, self.busy = rate, 0.0
        self.stream, self.room = ThreadPoolExecutor(1), threading.Semaphore(IN_FLIGHT)

    def wait(self, images):
        seconds = images / self.rate
        time.sleep(seconds)
        self.busy += seconds
        return np.float32(0)

    def enqueue(self, images):
        """A step on so many images; returns its Loss at once, if there is room for it."""
        self.room.acquire()
        step = self.stream.submit(self.wait, images)
        step.add_done_callback(lambda _: self.room.release())
        return Loss(step)


class Loss:
    """What a step of a Device gives; to read it takes until the step is done."""

    def __init__(self, step):
        self.step = step

    def __float__(self):
        return float(self.step.result())


def waiting_model(keras, device):
    """A Keras model whose steps are those of `device`."""

    def images(batch):
        x = batch[0]
        return x[0] if isinstance(x, (tuple, list)) else x  # without their maps

    class Waiting(keras.Model):
        def __init__(self):
            super().__init__()
            self.built = True

        if keras.backend.backend() == "tensorflow":

            def train_step(self, batch):
                import tensorflow

                count = tensorflow.shape(images(batch))[0]
                loss = tensorflow.numpy_function(device.wait, [count], "float32")
                return {"loss": tensorflow.ensure_shape(loss, [])}

        elif keras.backend.backend() == "jax":

            def make_train_function(self, force=False):
                self.train_function = lambda state, batches: (
                    {"loss": device.enqueue(len(images(next(batches))))},
                    state,
                )

        else:

            def make_train_function(self, force=False):
                self.train_function = lambda data: {"loss": device.enqueue(len(images(data[0])))}

    return Waiting()


def extraction(keras, device, images, width, folder, batch_size):
    """Seconds in which `width` values of each image are computed by `device` and stored."""
    from transfer.files import ArrayFile, make_array

    import common

    values = np.random.default_rng(0).random((batch_size, width), "float32")

    def predict_on_batch(model, x):
        device.wait(len(x))
        return values[: len(x)].copy()

    x = keras.Input(images.shape[1:])
    model, kept = keras.Model(x, x), keras.Model.predict_on_batch
    keras.Model.predict_on_batch = predict_on_batch
    file = ArrayFile(Path(folder) / "values.npy", (len(images), width), "float32", "extraction")
    start = time.perf_counter()
    try:
        make_array(file, common.outputs_of(model, images, batch_size), batch_size)
    finally:
        keras.Model.predict_on_batch = kept
        file.path.unlink(missing_ok=True)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=int, default=2000, help="images a second (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import common
    from transfer.study import AUGMENTATION

    keras = common.import_keras()
    from transfer.fitting import Feed, ProgressLines

    from transfer.devices import STEPS_AT_ONCE

    backend = keras.backend.backend()
    at_once = STEPS_AT_ONCE if backend == "tensorflow" else 1
    print(f"{describe_machine()}\n{backend}: batches of {args.batch_size}, {args.rate} images a second")
    rows = {
        "every batch looked at, augmented": (AUGMENTATION, 1, False),
        "as a run trains": (None, at_once, True),
        "as a run trains, augmented": (AUGMENTATION, at_once, True),
    }
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        np.save(f"{folder}/images.npy", rng.integers(0, 256, (STORED, SIZE, SIZE, 3), "uint8"))
        images, labels = Repeated(f"{folder}/images.npy", IMAGES), np.zeros(IMAGES, "int64")
        for name, (augment, steps, safe) in rows.items():
            shares = []
            for _ in range(args.rounds):
                device = Device(args.rate)
                model = waiting_model(keras, device)
                model.compile(jit_compile=False, steps_per_execution=steps)
                batches = common.Batches(images, labels, args.batch_size, seed=0, augment=augment)
                lines = ProgressLines(batches)
                lines.async_safe = safe
                start = time.perf_counter()
                model.fit(Feed(batches), verbose=0, shuffle=False, callbacks=[lines])
                shares.append(100 * device.busy / (time.perf_counter() - start))
            print(f"  {name}: busy {spread(shares)}% of the time", flush=True)
        stored = np.load(f"{folder}/images.npy", mmap_mode="r")
        for name, width in (("extraction of features", 4_224), ("activations of block5", 25_088)):
            shares = []
            for _ in range(args.rounds):
                device = Device(args.rate)
                seconds = extraction(keras, device, stored, width, folder, args.batch_size)
                shares.append(100 * device.busy / seconds)
            print(f"  {name}: busy {spread(shares)}% of the time", flush=True)


if __name__ == "__main__":
    main()
