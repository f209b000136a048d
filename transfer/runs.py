"""The folder of a run: its name, what it records of itself, and which process may write there."""

import contextlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from importlib.metadata import distributions
from itertools import count
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout

from transfer.backend import keras
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.devices import Share
from transfer.files import acquire, naming_errors, read_json, write_json
from transfer.flags import DEFAULT_CACHE
from transfer.folders import changed_classes

PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn", "numpy", "pillow", "skops")
FORMAT = 8  # of config.json, metrics.json and what a run resumes from
OUTDATED = "made by an earlier version of these scripts"
PLACES = ("data", "cache", "features", "out")  # flags that say where something lies, not what it is


def run_name(*parts, **conditions):
    """The name of a run's folder: `parts` (str), then the names of those `conditions` that hold."""
    holding = [name.replace("_", "-") for name, holds in conditions.items() if holds]
    return "-".join([*parts, *holding])


def describe_dataset(dataset):
    """What every file says of the data behind it: a dict."""
    return {
        "name": dataset.name,
        "notice": dataset.notice,
        "folder": str(dataset.root),
        "fingerprint": dataset.fingerprint,
        "classes": len(dataset.labels),
        "images": {name: len(split.files) for name, split in dataset.splits.items()},
    }


def describe_versions():
    """Versions of Python and of the packages that are installed, and Keras' backend: a dict."""
    installed = [package for package in distributions() if package.name in PACKAGES]
    return {
        "python": platform.python_version(),
        "keras backend": keras.backend.backend(),
        **{package.name: package.version for package in installed},
    }


def describe_run(args, dataset, **decisive):
    """The content of config.json: a dict. decisive: what else decides the figures of the run."""
    return {
        "format": FORMAT,
        "script": Path(sys.argv[0]).name,
        "arguments": vars(args),
        "dataset": describe_dataset(dataset),
        "versions": describe_versions(),
        "skipped_images": list(dataset.skipped),
        "labels": dataset.labels,
        **decisive,
    }


@contextlib.contextmanager
def start_run(config, name, named=None, share=Share()):  # noqa: B008, it never changes
    """The folder of a run, held by this process alone until the `with` block ends: a new one with
    its config.json, or that of an interrupted run with the same settings and data. It is the one
    `named`, else runs/<dataset>-<name>, <dataset>-<name>-2 ... share: of several processes the
    first records the run; the others get a folder that is thrown away. BadInput where the folder
    named is of no use."""
    candidates = numbered_names(Path("runs", f"{config['dataset']['name']}-{name}"), named)
    if share.process:
        run = next(run for run in candidates if named or not mismatch(run, config))
        with tempfile.TemporaryDirectory() as folder:
            write_json(Path(folder, "config.json"), config)
            # silent from now on, from a copy of what the other process resumes from
            print(
                f"Process {share.process} of {share.processes}; process 0 records this run.",
                flush=True,
            )
            sys.stdout = open(os.devnull, "w")
            if (run / "resume").exists():
                shutil.copytree(run / "resume", Path(folder, "resume"))
            yield Path(folder)
        return

    with contextlib.ExitStack() as stack:
        run = lock_folder(candidates, config, stack)
        if (run / "config.json").exists():
            print(f"Resuming the interrupted run in {run}\n", flush=True)
        else:
            run.mkdir(exist_ok=True)
            write_json(run / "config.json", config)
            print(f"This run is recorded in {run}\n", flush=True)
        with naming_errors(run):
            yield run


def numbered_names(path, named=None):
    """The one place `named`, else `path`, path-2, path-3 ..."""
    if named:
        yield Path(named)
        return
    yield path
    for number in count(2):
        yield path.with_name(f"{path.name}-{number}")


def lock_folder(candidates, config, stack):
    """The first of `candidates` that is new or holds this run, interrupted; its lock is left to
    `stack`. Says why the one before it is not; BadInput where none of them is."""
    skipped = None
    for run in candidates:
        # asked again under the lock: another process may just have finished it
        reason = mismatch(run, config) or lock_refused(run, stack) or mismatch(run, config)
        if not reason:
            if skipped:
                print(skipped)
            return run
        skipped = f"The folder {run} {reason}"
    raise BadInput(f"{skipped}, or choose another folder with --out.")


def lock_refused(run, stack):
    """Why the folder `run` cannot be locked; None once it is, until `stack` ends."""
    try:
        stack.enter_context(acquire(run, timeout=0))
    except Timeout:
        return "is being written by another process; wait for that one"
    return None


def mismatch(run, config):
    """Why the folder `run` cannot be taken for the run with this config.json; None where it can."""
    if not run.is_dir() or set(os.listdir(run)) <= {"config.json.part"}:
        return None
    if not (run / "config.json").exists():
        return "exists and is not a run; empty it"
    stored = read_json(run / "config.json")
    if stored.get("format") != FORMAT:
        return f"was {OUTDATED}; delete it"
    if (run / "metrics.json").exists():
        quoted = shlex.quote(str(run))
        return f"already holds a finished run; test it with `python test_model.py --run {quoted}`"

    old = decisive(stored)
    for name, value in decisive(config).items():
        if old.get(name, ...) != value:
            return f"has other settings or pictures ({name}); run the command that began it"
    return None


def decisive(config):
    """What decides the figures of a run, from its config.json: one flat dict to compare."""
    config = json.loads(json.dumps(config))  # a file has lists for tuples
    arguments = config.pop("arguments")
    return {
        "pictures' names, classes or contents": config.pop("dataset").get("fingerprint"),
        "Keras backend": config.pop("versions")["keras backend"],  # and not its version
        **{name: value for name, value in arguments.items() if name not in PLACES},
        **config,
    }


class Run(NamedTuple):
    """A finished run: its folder and what it recorded there."""

    folder: Path
    config: dict
    metrics: dict
    is_network: bool  # a fine-tuned network, not a pipeline on features
    image_size: int  # pixels a side of the images that it takes
    fingerprint: str  # of the dataset that it was trained on
    dataset_root: Path  # of that dataset then, from here
    folds: int  # by which all its pictures were answered, and trained on; None where it has splits


def read_run(folder):
    """The finished run in `folder`; BadInput where there is none, or one of an older FORMAT."""
    folder = Path(folder)
    if not (folder / "metrics.json").exists():
        raise BadInput(
            f"{folder} is not a finished run; `python test_model.py` lists those there are."
        )
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise BadInput(f"{folder} was {OUTDATED}; delete it and run its command again.")

    trained_on = config["dataset"]
    is_network = not (folder / "pipeline.skops").exists()
    metrics = read_json(folder / "metrics.json")
    return Run(
        folder=folder,
        config=config,
        metrics=metrics,
        is_network=is_network,
        image_size=config["arguments" if is_network else "features"]["image_size"],
        fingerprint=trained_on["fingerprint"],
        dataset_root=Path(trained_on["folder"]).absolute(),
        folds=metrics.get("folds"),
    )


def dataset_of(run, seed=0, cache=DEFAULT_CACHE, moved=None):
    """The dataset that a run was trained on: the Dataset `moved`, which --data names, where that
    has the same pictures or nothing is left in their old place; else from there. BadInput where
    there is neither, or where it has other classes by now."""
    here = run.dataset_root.is_dir()
    if moved and (run.fingerprint == moved.fingerprint or not here):
        dataset = moved
    elif here:
        dataset = load_dataset(run.config["dataset"]["folder"], seed, cache)
    else:
        raise BadInput(
            f"{run.folder} was trained on {run.dataset_root}, which is not here; name the place of "
            "its pictures with --data, or go to the folder where it was trained."
        )
    refuse_other_classes(run, dataset)
    return dataset


def refuse_other_classes(run, dataset):
    """BadInput where a run was trained on other classes than those of `dataset`."""
    labels = run.config["labels"]
    if labels != dataset.labels:
        raise BadInput(
            f"{run.folder} was trained on other classes than those of {dataset.root} "
            f"({changed_classes(labels, dataset.labels)}); name its own dataset with --data."
        )


def finished_runs(parent):
    """The finished runs in `parent`, by name; names those left out, as of an older FORMAT."""
    runs = []
    for path in sorted(Path(parent).glob("*/metrics.json")):
        try:
            runs.append(read_run(path.parent))
        except BadInput as error:
            print(f"Skipped: {error}")
    return runs
