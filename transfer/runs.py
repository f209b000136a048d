"""The folder of a run: what it records of itself, and which process may write there."""

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import distributions
from itertools import count
from pathlib import Path
from typing import NamedTuple

import keras
from filelock import Timeout

from common import Share
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import lock_of, naming_errors, read_json, write_json

PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn", "numpy", "pillow", "skops")
FORMAT = 7  # of config.json and of what a run resumes from


def describe_dataset(dataset):
    """What every file says of the data behind it."""
    about = {"name": dataset.name, "notice": dataset.notice, "folder": str(dataset.root)}
    about |= {"fingerprint": dataset.fingerprint, "content_key": dataset.content_key}
    counts = {name: len(split.files) for name, split in dataset.splits.items()}
    return about | {"classes": len(dataset.labels), "images": counts}


def describe_versions():
    """Versions of Python and of the packages that are installed, and Keras' backend."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    packages = {package: installed[package] for package in PACKAGES if package in installed}
    return {
        "python": platform.python_version(),
        "keras backend": keras.backend.backend(),
    } | packages


def describe_run(args, dataset, **decisive):
    """The content of config.json. decisive: what beside flags and data decides the run's figures."""
    config = {"format": FORMAT, "script": Path(sys.argv[0]).name, "arguments": vars(args)}
    config |= {"dataset": describe_dataset(dataset), "versions": describe_versions()}
    return config | {"skipped_images": list(dataset.skipped), "labels": dataset.labels} | decisive


@contextlib.contextmanager
def start_run(config, name, named=None, share=Share()):  # noqa: B008, it never changes
    """The folder of a run, held by this process alone until the `with` block ends: a new one with its
    config.json, or that of an interrupted run with the same settings and data; the one `named`, else
    runs/<dataset>-<name>, <dataset>-<name>-2 ... share: of several processes the first records the run;
    the others get a folder that is thrown away. BadInput where the folder named is of no use."""
    name = f"{config['dataset']['name']}-{name}"
    candidates = [Path(named)] if named else numbered_names(Path("runs") / name)
    if share.process:
        run = next(run for run in candidates if named or not mismatch(run, config))
        print(
            f"Process {share.process} of {share.processes}; process 0 records this run.", flush=True
        )
        sys.stdout = open(os.devnull, "w")
        with tempfile.TemporaryDirectory() as folder:
            if (run / "resume").exists():
                shutil.copytree(run / "resume", Path(folder) / "resume")
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


def numbered_names(path):
    """`path`, path-2, path-3 ..."""
    return (path.with_name(f"{path.name}-{n}") if n > 1 else path for n in count(1))


def lock_folder(candidates, config, stack):
    """The first of `candidates` that is new or holds this run, interrupted; its lock is left to `stack`.
    Says why the one before it is not; BadInput where none of them is."""
    passed_over = None
    for run in candidates:
        reason, lock = mismatch(run, config), lock_of(run)
        if not reason:
            try:
                stack.enter_context(lock.acquire(timeout=0))
            except Timeout:
                reason = "is being written by another process; wait for that one"
        if not reason:
            reason = mismatch(run, config)  # it may just have been finished
        if not reason:
            if passed_over:
                print(passed_over)
            return run
        passed_over = f"The folder {run} {reason}"
    raise BadInput(f"{passed_over}, or name a new one with --out.")


def mismatch(run, config):
    """Why the folder `run` cannot be taken for the run with this config.json; None where it can."""
    if not run.is_dir() or not any(path.name != "config.json.part" for path in run.iterdir()):
        return None
    if (run / "metrics.json").exists():
        return f"already holds a finished run; test it with `python test_model.py --run {run}`"
    if not (run / "config.json").exists():
        return "already exists and is not a run's; clear it"
    stored, wanted = read_json(run / "config.json"), json.loads(json.dumps(config))
    if stored.get("format") != wanted["format"]:
        return "holds a run that another version of these scripts began; delete it"
    for settings in (stored, wanted):  # the backend counts and not its version
        settings["Keras backend"] = settings.pop("versions")["keras backend"]
        settings["dataset"] = settings["dataset"].get("content_key")
    if stored["dataset"] != wanted["dataset"]:
        return "already holds a run on other pictures (names, sizes or times have changed since); delete it"
    old, new = stored.pop("arguments"), wanted.pop("arguments")
    different = [f"--{key.replace('_', '-')}" for key in new if old.get(key, ...) != new[key]]
    different += [key for key in wanted if stored.get(key, ...) != wanted[key]]
    if different:
        return f"already holds a run with another {different[0]}; run the command that began it to resume"
    return None


class Run(NamedTuple):
    """A finished run: its folder and what it recorded there."""

    folder: Path
    config: dict
    metrics: dict
    is_network: bool  # a fine-tuned network, not a pipeline on features
    image_size: int  # pixels a side of the images that it takes
    fingerprint: str  # of the dataset that it was trained on
    dataset_root: Path  # of that dataset then, from here


def read_run(folder):
    """The finished run in `folder`; BadInput where there is none."""
    folder = Path(folder)
    if not (folder / "metrics.json").exists():
        raise BadInput(
            f"{folder} is not a finished run; `python test_model.py` lists those there are."
        )
    config, is_network = read_json(folder / "config.json"), not (folder / "pipeline.skops").exists()
    size, data = config["arguments" if is_network else "features"]["image_size"], config["dataset"]
    place, metrics = Path(data["folder"]).absolute(), read_json(folder / "metrics.json")
    return Run(folder, config, metrics, is_network, size, data["fingerprint"], place)


def dataset_of(run, seed=0):
    """The dataset that a run was trained on; BadInput where it is elsewhere."""
    if not run.dataset_root.is_dir():
        advice = (
            "name the place of its pictures with --data, or go to the folder where it was trained"
        )
        raise BadInput(
            f"{run.folder} was trained on {run.dataset_root}, which is not here; {advice}."
        )
    return load_dataset(run.config["dataset"]["folder"], seed)


def finished_runs(parent):
    """The finished runs in `parent`, by name."""
    found = sorted(Path(parent).glob("*/metrics.json"))
    return [read_run(path.parent) for path in found if path.with_name("config.json").exists()]
