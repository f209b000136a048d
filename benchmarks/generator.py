"""What the batches alone deliver at 224x224, in images a second, without any network.

    python benchmarks/generator.py

From the decoded images on disk, without and with augmentation, on one thread and on all cores; and what
decoding and resizing JPEG files alone gives, which each image goes through once.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from measure import PICTURES, describe_machine, pictures, spread


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import common
    from transfer.study import AUGMENTATION

    common.import_keras()
    print(f"{describe_machine()}\n{args.images} {PICTURES}, batches of {args.batch_size}")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        images = pictures(args.images, folder)
        print(f"  decoded on one thread: {args.images / (time.perf_counter() - start):.0f} images a second")
        labels, rates = np.zeros(args.images, "int64"), {}
        for _ in range(args.rounds):
            for augment in (None, AUGMENTATION):
                for threads in (1, os.cpu_count()):
                    source = common.Batches(images, labels, args.batch_size, seed=0, augment=augment)
                    source[0]
                    start = time.perf_counter()
                    with ThreadPoolExecutor(threads) as pool:
                        list(
                            pool.map(
                                lambda index, source=source: source[index][1].shape, range(len(source))
                            )
                        )
                    rate = args.images / (time.perf_counter() - start)
                    name = f"{'augmented' if augment else 'plain'}, {threads} threads"
                    rates.setdefault(name, []).append(rate)
        for name, values in rates.items():
            print(f"  {name}: {spread(values)} images a second")


if __name__ == "__main__":
    main()
