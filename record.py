"""What the scripts print and write: messages, tables, a run's folder, plots."""

import contextlib
import io
import json
import os
import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import numpy as np

from distribution import Share, WorkerLost
from files import BadInput, read_json, write_atomically, write_json

PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn", "numpy", "pillow", "skops")
RESUME = "resume"  # in a run's folder: what it goes on from, where it is interrupted
LOCK = ".lock"  # in a folder that one process at a time may write to
UNFINISHED = (LOCK, "config.json.part")  # what a run leaves that was killed before it began

# Messages --------------------------------------------------------------------------------


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name
    try:
        main()
    except WorkerLost as error:
        report_failure(f"{script}: error: {error}.", 2)
        os._exit(2)  # an engine would wait for that worker at exit
    except BadInput as error:
        sys.exit(report_failure(f"{script}: error: {error}", 2))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())  # h5py's carry a message alone
        mend = "mend that (free space, rights, another folder), and the same command goes on"
        report_failure(f"{script}: error: cannot use{where}: {reason}; {mend}.", 2)
        sys.stdout.flush()
        os._exit(2)  # HDF5 crashes where it closes a file, at exit, that a full disk did not take
    except KeyboardInterrupt:
        sys.exit(
            report_failure(f"\n{script}: interrupted; the same command goes on where it stopped.", 130)
        )


def report_failure(message, status):
    """Print `message` to stderr; returns the exit status."""
    print(message, file=sys.stderr, flush=True)
    return status


def print_configuration(args, dataset, script):
    """The first thing on screen: the dataset's notice, then every setting."""
    print_notice(dataset.notice)
    print(f"{script}: resolved configuration")
    for key, value in sorted(vars(args).items()):
        print(f"  {key:<28}{value}")
    counts = ", ".join(f"{len(split.files)} {name}" for name, split in dataset.splits.items())
    print(f"  {'dataset':<28}{dataset.name}: {counts} images, {len(dataset.labels)} classes\n")


def print_notice(notice):
    """A frame around the sentence of a dataset that is not real; nothing where there is none."""
    if notice:
        print("\n".join(["=" * 96, f"  {notice}", "=" * 96]), flush=True)


def print_table(header, rows):
    """Rows of cells, the first column left-aligned, the others right-aligned."""
    table = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        print("  " + "  ".join(cells).rstrip())


def percent(fraction):
    """A fraction as the study prints accuracies; '-' for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f}%"


# A run's folder --------------------------------------------------------------------------


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


@contextlib.contextmanager
def start_run(args, dataset, name, skipped, share=Share(), **more):  # noqa: B008, it never changes
    """The folder of a run, held by this process alone until the `with` block ends.

    A new folder with its config.json, or that of an interrupted run with the same settings, on the same
    data: the one that --resume or --out names, else runs/<name>, <name>-2 ... No finished run is touched.
    share: of several workers the first records the run; the others get a folder that is thrown away, with
    what they go on from. more: what else decides the run's figures. BadInput where the folder named is of
    no use.
    """
    config = {
        "script": Path(sys.argv[0]).name,
        "arguments": {key: value for key, value in vars(args).items() if key != "resume"},
        "dataset": describe_dataset(dataset),
        "versions": describe_versions(),
        "skipped_images": skipped,
        "labels": dataset.labels,
        **more,
    }
    named = getattr(args, "resume", None) or args.out
    numbered = (f"{dataset.name}-{name}-{n}" if n > 1 else f"{dataset.name}-{name}" for n in count(1))
    candidates = [Path(named)] if named else (Path("runs") / folder for folder in numbered)
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


def copy_state(run, folder):
    """Copy what an interrupted run goes on from, if it is one: its state and what that names."""
    state = run / RESUME / "state.json"
    if state.exists():
        (folder / RESUME).mkdir()
        content = state.read_text(encoding="utf-8")
        (folder / RESUME / "state.json").write_text(content, encoding="utf-8")
        for path in state.parent.glob("*.weights.h5"):
            if path.name in content or path.name.startswith("best-"):
                shutil.copy(path, folder / RESUME)


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


def finished_runs(parent):
    """[(folder, config, metrics)] of the finished runs in `parent`, by name."""
    found = []
    for metrics in sorted(Path(parent).glob("*/metrics.json")):
        config = metrics.with_name("config.json")
        if config.exists():
            found.append((metrics.parent, read_json(config), read_json(metrics)))
    return found


# Plots -----------------------------------------------------------------------------------


def save_figure(figure, path, notice):
    """Write a matplotlib figure as PNG, atomically, with the dataset's notice at its foot."""
    if notice:
        figure.text(0.5, 0.005, notice, ha="center", va="bottom", fontsize=8, color="firebrick")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())


def plot_curves(history, path, title, notice):
    """Draw loss and accuracy of a history (list of rows as in history.csv) with its steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    figure.suptitle(title)
    epochs = [row["epoch"] for row in history]
    starts = [
        row for before, row in zip([None, *history], history) if not before or before["step"] != row["step"]
    ]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name, label in ((key, "train"), (f"val_{key}", "val")):
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "accuracy":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
        for row in starts:
            if row is not history[0]:
                axes.axvline(row["epoch"] - 0.5, color="grey", linestyle="--", linewidth=1)
            # along the line, at the end of the axis that the curves leave free
            y, side = (0.98, "top") if key == "loss" else (0.02, "bottom")
            axes.text(
                row["epoch"] - 0.5,
                y,
                f"{row['step']}: {row['trained']}",
                transform=axes.get_xaxis_transform(),
                rotation=90,
                ha="left",
                va=side,
                fontsize=7,
                color="dimgrey",
            ).set_in_layout(False)  # else a long name squeezes the axes
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, notice)


def plot_confusion(matrix, labels, path, title, notice):
    """Draw a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    from matplotlib.figure import Figure

    size = max(6.5, 0.38 * len(labels) + 2.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.025, 1, 0.975))
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=colour)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    save_figure(figure, path, notice)
