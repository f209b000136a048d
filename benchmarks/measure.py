"""What the benchmarks share: the machine, pictures, workers in processes of their own."""

import contextlib
import multiprocessing
import os
import platform
import re
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REAL = ROOT.parent / "shared" / "real"
PHOTOGRAPHS = sorted(REAL.glob("trashnet/train/*/*.jpg"))
PICTURES = "TrashNet photographs" if PHOTOGRAPHS else "pictures of noise"  # what `pictures` gives
PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn")


def describe_machine():
    """One line: the processor, its cores, and the packages that are installed."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"model name\s*: (.*)", text)
    processor = model[1] if model else platform.machine()
    parts = [f"{os.cpu_count()} cores of {processor}"]
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    return ", ".join(parts)


def pictures(path, count, image_size=224):
    """`count` decoded pictures: a memory map uint8 (count, size, size, 3) of the new file `path`.

    Photographs that lie beside the repository, evenly over their classes; noise where none do.
    """
    from transfer.images import decode_image

    shape = (count, image_size, image_size, 3)
    array = np.lib.format.open_memmap(path, "w+", "uint8", shape)
    rng = np.random.default_rng(0)
    for row in range(count):
        if PHOTOGRAPHS:
            photograph = PHOTOGRAPHS[row * len(PHOTOGRAPHS) // count]
            array[row] = decode_image(photograph, image_size)
        else:
            array[row] = rng.integers(0, 256, shape[1:], "uint8")
    array.flush()
    return np.load(path, mmap_mode="r")


def few_of_each(labels, count, seed):
    """Row numbers of `count` random rows of each class in `labels`; of all rows where it is 0."""
    order = np.random.default_rng(seed).permutation(len(labels))
    of_classes = [order[labels[order] == label] for label in np.unique(labels)]
    return np.concatenate([rows[: count or None] for rows in of_classes])


def peak_memory():
    """Peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def silenced(function, *arguments):
    """What `function` returns; nothing that it prints is shown."""
    with (
        open(os.devnull, "w") as null,
        contextlib.redirect_stdout(null),
        contextlib.redirect_stderr(null),
    ):
        return function(*arguments)


def in_new_process(function, *arguments):
    """What `function` returns in a process of its own. Its errors are raised here."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(silenced, function, *arguments).result()


def alternate(workers, rounds=1):
    """Run all workers {name: (function, arguments ...)} in turn, `rounds` times, in new processes.

    A worker returns a dict of figures, whose numbers are printed at once. Returns {name: [figures]}
    without the workers that need a package which is not installed.
    """
    from transfer.console import BadInput

    found = {}
    for _ in range(rounds):
        for name, worker in workers.items():
            try:
                figures = in_new_process(*worker)
            except (ImportError, BadInput) as error:
                print(f"  {name}: skipped: {error}", flush=True)
                continue
            found.setdefault(name, []).append(figures)
            numbers = {key: value for key, value in figures.items() if np.isscalar(value)}
            shown = ", ".join(f"{key} {value:.4g}" for key, value in numbers.items())
            print(f"  {name}: {shown}", flush=True)
    return found


def spread(values):
    """Median (minimum to maximum)."""
    return f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
