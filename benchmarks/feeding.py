"""Is a fast device kept busy? One that only waits, as long as a GPU that takes 2,000 images a second would.

    python benchmarks/feeding.py

An epoch of 20,300 images of 224x224 (drawn ones, repeated from 1,024 on disk), augmented and not, through
`fitting.Feed` and Keras' own `fit` on TensorFlow. Busy is the time for which the device waits, a share of
the epoch: from the start of `fit` to its end, the first batch included. 'the loop alone' is the same with
batches of two numbers that are there already: what Keras itself takes between two steps.
"""

import argparse
import tempfile
import time

import numpy as np
from measure import describe_machine, spread

IMAGES, STORED, SIZE = 20_300, 1_024, 224


class Repeated:
    """An array of `count` images, of which only some lie on disk."""

    def __init__(self, path, count):
        self.images, self.count = np.load(path, mmap_mode="r"), count

    def __len__(self):
        return self.count

    def __getitem__(self, rows):
        return self.images[rows % len(self.images)]


def waiting_device(keras, rate):
    """A Keras model on TensorFlow that takes batches and waits."""

    class Waiting(keras.Model):
        waited = 0.0

        def train_step(self, batch):
            x, _ = batch
            seconds = len(x[0] if isinstance(x, tuple) else x) / rate
            time.sleep(seconds)
            self.waited += seconds
            return {"loss": 0.0}

    return Waiting()


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
    import tensorflow

    from transfer.fitting import Feed

    print(f"{describe_machine()}\n{IMAGES} images, batches of {args.batch_size}, {args.rate} a second")
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        np.save(f"{folder}/images.npy", rng.integers(0, 256, (STORED, SIZE, SIZE, 3), "uint8"))
        images, labels = Repeated(f"{folder}/images.npy", IMAGES), np.zeros(IMAGES, "int64")

        def batches(augment):
            return Feed(common.Batches(images, labels, args.batch_size, seed=0, augment=augment))

        count = -(-IMAGES // args.batch_size)
        small = np.zeros((args.batch_size, 2), "uint8"), np.zeros(args.batch_size, "int64")
        sources = {
            "the loop alone": lambda: tensorflow.data.Dataset.from_tensors(small).repeat(count),
            "plain": lambda: batches(None),
            "augmented": lambda: batches(AUGMENTATION),
        }
        for name, source in sources.items():
            shares = []
            for _ in range(args.rounds):
                device = waiting_device(keras, args.rate)
                device.compile(run_eagerly=True)
                start = time.perf_counter()
                device.fit(source(), verbose=0, shuffle=False)
                shares.append(100 * device.waited / (time.perf_counter() - start))
            print(f"  {name}: busy {spread(shares)}% of the time", flush=True)


if __name__ == "__main__":
    main()
