"""What the benchmarks share: the machine, pictures, alternated runs in processes of their own."""

import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
REAL = ROOT.parent / "shared" / "real"
PHOTOGRAPHS = REAL / "trashnet"
PICTURES = (
    "TrashNet photographs" if PHOTOGRAPHS.is_dir() else "pictures of noise"
)  # what `pictures` gives


def describe_machine():
    """One line on the processor, its cores and the packages."""
    names = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
    processor = (
        f"{len(names)} cores of {names[0].split(':')[1].strip()}" if names else platform.machine()
    )
    packages = ("keras", "tensorflow", "jax", "torch", "scikit-learn")
    found = {distribution.name: distribution.version for distribution in distributions()}
    return (
        f"{processor}; {', '.join(f'{name} {found[name]}' for name in packages if name in found)}"
    )


def pictures(count, folder, image_size=224):
    """`count` decoded photographs: a memory map uint8 (count, size, size, 3) in `folder`.

    TrashNet's beside the repository; where those are missing, noise.
    """
    from transfer.files import ArrayFile, build_or_load_array
    from transfer.images import decode_image

    paths, rng = sorted(PHOTOGRAPHS.glob("train/*/*.jpg")), np.random.default_rng(0)

    def decoded(starts):
        for number in starts:
            if paths:
                path = paths[number * len(paths) // count % len(paths)]
                yield decode_image(path, image_size)[None]
            else:
                yield rng.integers(0, 256, (1, image_size, image_size, 3), "uint8")

    shape = (count, image_size, image_size, 3)
    file = ArrayFile(Path(folder) / f"{count}-{image_size}.npy", shape, "uint8", "decoding")
    return build_or_load_array(file, decoded, 1)


def few_of_each(labels, count, seed):
    """Rows of `count` random ones of each class in `labels`, of all of them where `count` is 0."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate(
        [order[labels[order] == label][: count or None] for label in np.unique(labels)]
    )


def fit_begins(moments):
    """A context in which the moment when `train.train_stage` has its inputs and fits is added to a list."""
    import common

    def callbacks(*given, original=common.training_callbacks):
        moments.append(time.perf_counter())
        return original(*given)

    return mock.patch.object(common, "training_callbacks", callbacks)


def peak_memory():
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(**figures):
    """A worker's last line: its figures for `alternate`."""
    print("FIGURES " + json.dumps(figures), flush=True)


def run_worker(script, *flags):
    """The figures that a process of `script` reports, as a dict; None where it fails."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, flags)], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FIGURES ")]
    if not lines:
        print(f"  {' '.join(map(str, flags))} gave nothing: {done.stderr.strip()[-300:]}")
        return None
    return json.loads(lines[-1].removeprefix("FIGURES "))


def alternate(script, workers, rounds):
    """Run all workers {name: flags} in turn, `rounds` times; {name: list of their figures}."""
    found = {name: [] for name in workers}
    for _ in range(rounds):
        for name, flags in workers.items():
            figures = run_worker(script, *flags)
            if figures:
                found[name].append(figures)
                shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
                print(f"  {name}: {shown}", flush=True)
    return {name: figures for name, figures in found.items() if figures}


def spread(values):
    """Median (minimum to maximum)."""
    return f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
