"""The folder of a run: what it records of itself, and whose turn it is to write there."""

import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

from transfer.devices import Share
from transfer.files import LOCK, read_json, write_json
from transfer.resume import FOLDER
from transfer.screen import BadInput

PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn", "numpy", "pillow", "skops")
FORMAT = 3  # of config.json and of what a run goes on from
UNFINISHED = (LOCK, "config.json.part")  # what a run leaves that was killed before it began


def describe_dataset(dataset):
    """What every file says of the data behind it."""
    return {
        "name": dataset.name,
        "notice": dataset.notice,
        "folder": str(dataset.root),
        "fingerprint": dataset.fingerprint,
        "classes": len(dataset.labels),
        "images": {name: len(split.files) for name, split in dataset.splits.items()},
    }


def describe_versions():
    """Versions of Python and of the packages that are installed, and Keras' backend."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "keras" in sys.modules:
        found["keras backend"] = sys.modules["keras"].backend.backend()
    return found


def describe_run(args, dataset, **decisive):
    """The content of config.json. decisive: what beside flags and data decides the run's figures."""
    return {
        "format": FORMAT,
        "script": Path(sys.argv[0]).name,
        "arguments": {key: value for key, value in vars(args).items() if key != "resume"},
        "dataset": describe_dataset(dataset),
        "versions": describe_versions(),
        "skipped_images": list(dataset.skipped),
        "labels": dataset.labels,
        **decisive,
    }


@contextlib.contextmanager
def start_run(config, name, named=None, share=Share()):  # noqa: B008, it never changes
    """The folder of a run, held by this process alone until the `with` block ends.

    A new folder with its config.json, or that of an interrupted run with the same settings, on the same
    data: the folder `named`, else runs/<dataset>-<name>, <dataset>-<name>-2 ... No finished run is touched.
    share: of several workers the first records the run; the others get a folder that is thrown away, with
    what they go on from. BadInput where the folder named is of no use.
    """
    name = f"{config['dataset']['name']}-{name}"
    candidates = [Path(named)] if named else numbered(Path("runs") / name)
    if share.worker:
        run = next((run for run in candidates if not why_not(run, config)), Path(named or "."))
        print(
            f"Worker {share.worker} of {share.workers}; worker 0 prints and records this run.", flush=True
        )
        sys.stdout = open(os.devnull, "w")
        with tempfile.TemporaryDirectory() as folder:
            copy_state(run, Path(folder))
            yield Path(folder)
        return
    lock, run = claim_folder(candidates, config)
    try:
        if (run / "config.json").exists():
            print(f"Going on with the interrupted run in {run}\n", flush=True)
        else:
            write_json(run / "config.json", config)
            print(f"This run is recorded in {run}\n", flush=True)
        yield run
    finally:
        lock.release()


def numbered(path):
    """`path`, path-2, path-3 ..."""
    return (path.with_name(f"{path.name}-{n}") if n > 1 else path for n in count(1))


def copy_state(run, folder):
    """Copy what an interrupted run goes on from, if it is one: its state and what that names."""
    state = run / FOLDER / "state.json"
    if state.exists():
        (folder / FOLDER).mkdir()
        content = state.read_text(encoding="utf-8")
        (folder / FOLDER / "state.json").write_text(content, encoding="utf-8")
        for path in state.parent.glob("*.weights.h5"):
            if path.name in content or path.name.startswith("best-"):
                shutil.copy(path, folder / FOLDER)


def claim_folder(candidates, config):
    """(lock, folder) of the first of `candidates` that is new or holds this run, interrupted.

    BadInput that says why where none of them is.
    """
    from filelock import FileLock, Timeout

    for run in candidates:
        reason = why_not(run, config)
        if not reason:
            run.mkdir(parents=True, exist_ok=True)
            lock = FileLock(run / LOCK)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                reason = "is being written by another process; wait for that one"
            else:
                reason = why_not(run, config)  # it may just have been finished
                if not reason:
                    return lock, run
                lock.release()
    raise BadInput(f"The folder {run} {reason}, or name a new one with --out.")


def why_not(run, config):
    """Why the folder `run` cannot be taken for the run with this config.json; None where it can."""
    if not run.is_dir() or all(path.name in UNFINISHED for path in run.iterdir()):
        return None
    if (run / "metrics.json").exists():
        return f"is there already and its run is finished; test it with `python test_model.py --run {run}`"
    if not (run / "config.json").exists():
        return "is there already and is not a run's; clear it"
    stored, wanted = read_json(run / "config.json"), json.loads(json.dumps(config))
    if stored.get("format") != wanted["format"]:
        return "holds a run that another version of these scripts began; delete it"
    # the backend counts and not its version; a forest knows one only where it extracted its features
    backends = {settings.pop("versions").get("keras backend") for settings in (stored, wanted)}
    for settings in (stored, wanted):
        settings["dataset"] = settings["dataset"]["fingerprint"]
    old, new = stored.pop("arguments"), wanted.pop("arguments")
    different = [key for key in new if key not in old or old[key] != new[key]]
    different += [key for key in wanted if stored.get(key) != wanted[key]]
    different += ["Keras backend"] * (len(backends - {None}) > 1)
    if different:
        return f"is there already and its run has another {different[0]}; resume it with its own settings"
    return None


# Finished runs ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and what it recorded there."""

    folder: Path
    config: dict
    metrics: dict

    @property
    def is_network(self):
        """Whether it is a fine-tuned network, not a pipeline on features."""
        return not (self.folder / "pipeline.skops").exists()

    @property
    def image_size(self):
        """Pixels a side of the images that it takes."""
        return self.config["arguments" if self.is_network else "features"]["image_size"]

    @property
    def fingerprint(self):
        """Of the dataset that it was trained on."""
        return self.config["dataset"]["fingerprint"]


def read_run(folder):
    """The finished run in `folder`; BadInput where there is none."""
    folder = Path(folder)
    if not (folder / "metrics.json").exists():
        raise BadInput(f"{folder} is not a finished run; `python test_model.py` lists those there are.")
    return Run(folder, read_json(folder / "config.json"), read_json(folder / "metrics.json"))


def finished_runs(parent):
    """The finished runs in `parent`, by name."""
    found = sorted(Path(parent).glob("*/metrics.json"))
    return [read_run(path.parent) for path in found if path.with_name("config.json").exists()]
