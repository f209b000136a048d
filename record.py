"""What the scripts print and write: messages, tables, a run's folder, plots, stored features."""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path

import numpy as np

from common import (
    build_model,
    convolutions,
    feature_layers,
    load_model,
    load_weights,
    model_file,
    outputs_of,
    pooled_model,
    read_weights,
    select_layers,
    weights_digest,
)
from dataset import load_images, supports
from files import (
    BadInput,
    check_file,
    file_digest,
    locked,
    make_array,
    read_json,
    replace_with_checksum,
    write_atomically,
    write_csv,
    write_json,
)
from study import FOREST_ROWS, rows_of

PACKAGES = ("keras", "tensorflow", "jax", "torch", "scikit-learn", "numpy", "pillow", "skops")
LOCK = ".lock"  # in a folder that one process at a time may write to
UNFINISHED = (LOCK, "config.json.part")  # what a run leaves that was killed before it began

# Messages --------------------------------------------------------------------------------


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name
    try:
        main()
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
def start_run(args, dataset, name, skipped, **more):
    """The folder of a run, held by this process alone until the `with` block ends.

    A new folder with its config.json, or that of an interrupted run with the same settings, on the same
    data: the one that --resume or --out names, else runs/<name>, <name>-2 ... No finished run is touched.
    more: what else decides the run's figures. BadInput where the folder named is of no use.
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
                ha="right" if row is history[0] else "left",
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


# Stored features -------------------------------------------------------------------------


def add_feature_arguments(group):
    """--layers and --model: which features are taken, and whose."""
    group.add_argument(
        "--layers",
        default="all",
        help="all, conv, last (of each block), or names separated by commas (default: %(default)s)",
    )
    group.add_argument(
        "--model",
        metavar="M",
        help="imagenet or none (the original VGG16, trained or drawn anew), a run, a .keras file or an "
        "official Keras .h5 (default: the dataset's; MAMe imagenet, demo none)",
    )


def resolve_model(args, dataset):
    """Fill --model with the dataset's default, and --image-size with that of a run given as model."""
    args.model = args.model or dataset.defaults["weights"]
    config = Path(args.model) / "config.json"
    if config.exists() and args.image_size is None:
        args.image_size = read_json(config)["arguments"]["image_size"]


def feature_source(args, layers):
    """The network that --model names, built for the features of `layers`.

    Returns a Keras model with the weights loaded. imagenet, none and .h5 files give the original
    VGG16, whose fc1 and fc2 come with it where `layers` asks for them.
    """
    source = str(args.model)
    if source not in ("imagenet", "none") and not source.endswith(".h5"):
        model = load_model(source)
        if model.input_shape[1] != args.image_size:
            raise BadInput(
                f"The model {source} was made for images of {model.input_shape[1]} pixels, not "
                f"{args.image_size}; leave --image-size out or give --image-size {model.input_shape[1]}."
            )
        return model
    with_top = layers == "all" or "fc" in layers
    if source.endswith(".h5") and layers == "all":
        with_top = "fc1" in read_weights(source)
    if with_top and source == "imagenet" and args.image_size != 224:
        raise BadInput(
            "The original VGG16's fc1 takes images of 224 pixels alone; "
            f"use --layers conv with --image-size {args.image_size}."
        )
    model = build_model(args.image_size, 1000, "fc" if with_top else "gap")
    load_weights(model, source, args.seed, convolutions(model) + (["fc1", "fc2"] if with_top else []))
    return model


def source_key(args):
    """What decides the weights of --model, without loading them."""
    if args.model == "imagenet":
        return "imagenet"
    if args.model == "none":
        return f"none seed {args.seed}"
    return file_digest(model_file(args.model))


def features_folder(args, dataset, layers):
    """Default folder of the features of --model on a dataset: the same inputs, the same folder."""
    key = f"{source_key(args)} {dataset.fingerprint} {args.image_size} {layers} {args.skip_unreadable}"
    source = Path(args.model).name.removesuffix(".keras").removesuffix(".h5")
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    return (
        Path("features") / f"{dataset.name}-{source}-{args.image_size}-{layers.replace(',', '+')}-{digest}"
    )


def extract_features(args, dataset, layers, splits, folder, check=False):
    """Write the features of `splits` to `folder`, those that are not there yet.

    For each split: <split>.npy, float32 (n, n_features), written batch by batch and resumed at the
    last one after an interruption; <split>.csv with file, label and medium of each row; and for all of
    them features.json with the layer map.
    Nothing is loaded, not even Keras, where all splits are there already, unless `check`: then
    BadInput tells where what is there was made by another model or from another dataset.
    """
    missing = missing_features(folder, splits)
    if not missing and not check:
        return
    model = feature_source(args, layers)
    names = feature_layers(model, layers)
    pooled, columns = pooled_model(model, names)
    dataset, images, _ = load_images(dataset, missing, args.image_size, args.cache, args.skip_unreadable)
    notes = {
        "model": str(args.model),
        "seed": args.seed,
        "image_size": args.image_size,
        "weights_sha256": weights_digest(model, names),
        "layers": columns,
        "dataset": describe_dataset(dataset),
        "versions": describe_versions(),
    }
    with locked(folder / LOCK):
        if (folder / "features.json").exists():
            check_same(read_json(folder / "features.json"), notes, folder)
        else:
            write_json(folder / "features.json", notes)
        width = pooled.output_shape[-1]
        for split in missing_features(folder, missing):  # less where another process made them
            rows = dataset.splits[split]
            lines = [
                {"file": file, "label": label, "medium": dataset.labels[label], "dataset": dataset.name}
                for file, label in zip(rows.files, rows.labels)
            ]
            write_csv(folder / f"{split}.csv", lines)  # first: the .npy says that the split is whole
            path, shape = folder / f"{split}.npy", (len(rows.files), width)
            produce = outputs_of(pooled, images[split], args.batch_size)
            make_array(path, shape, "float32", produce, args.batch_size, f"the {split} features")
            print(f"  {path}: {shape[0]} images, {shape[1]} features", flush=True)


def missing_features(folder, splits):
    """Those of `splits` whose features are not in `folder`."""
    return [split for split in splits if not (folder / f"{split}.npy").exists()]


def check_same(stored, wanted, folder):
    """BadInput where features in `folder` were made by another model, size or dataset."""
    for key in ("weights_sha256", "image_size", "layers"):
        if stored.get(key) != wanted[key]:
            raise BadInput(
                f"The features in {folder} differ from those asked for in {key}; "
                "name another folder, or delete that one."
            )
    if stored["dataset"]["fingerprint"] != wanted["dataset"]["fingerprint"]:
        raise BadInput(
            f"The features in {folder} were made from another dataset "
            f"({stored['dataset']['name']}); name another folder, or delete that one."
        )


def load_features(folder, dataset, split, layers):
    """Features of one split, rows tied to the metadata by file name.

    Returns (features float32 (n, n_features), labels (n,), files (n,)). All layers of the file
    come as a memory map, fewer as a copy of their columns. BadInput where the folder does not fit
    the dataset, or a file is damaged.
    """
    folder = Path(folder)
    notes = read_json(folder / "features.json")
    if notes.get("dataset", {}).get("fingerprint") != dataset.fingerprint:
        raise BadInput(
            f"The features in {folder} were made from another dataset than {dataset.root}; "
            "name its folder with --data, or extract anew with extract_features.py."
        )
    check_file(folder / f"{split}.npy")
    try:
        features = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
        with open(folder / f"{split}.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        files = np.array([row["file"] for row in rows])
        stored = np.array([int(row["label"]) for row in rows])
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise BadInput(
            f"The {split} features in {folder} are missing or damaged ({error}); "
            "extract them anew with extract_features.py."
        ) from None
    width = max((stop for _, stop in notes["layers"].values()), default=0)
    if features.shape != (len(files), width) or features.dtype != np.float32:
        raise BadInput(
            f"{folder}/{split}.npy holds {features.dtype} {features.shape} where its notes say "
            f"float32 {(len(files), width)}; extract it anew with extract_features.py."
        )
    known = dict(zip(dataset.splits[split].files.tolist(), dataset.splits[split].labels.tolist()))
    for file, label in zip(files.tolist(), stored.tolist()):
        if known.get(file) != label:
            raise BadInput(
                f"{folder}/{split}.csv gives {file!r} the label {label} where the dataset has "
                f"{known.get(file, 'no such image')}; extract the features anew."
            )
    names = select_layers(list(notes["layers"]), layers)
    if names != list(notes["layers"]):
        features = np.concatenate([features[:, slice(*notes["layers"][n])] for n in names], axis=1)
    return features, stored, files


def check_supports(dataset, split, labels, skip_unreadable):
    """Compare the labels (n,) of the images evaluated with the metadata's count and supports.

    BadInput on a difference; with `skip_unreadable` only where there are more than listed.
    """
    found = np.bincount(labels, minlength=len(dataset.labels))
    listed = np.array(list(supports(dataset, split).values()))
    wrong = np.flatnonzero(found > listed if skip_unreadable else found != listed)
    if len(wrong):
        raise BadInput(
            f"{found.sum()} images of the {split} split were evaluated where the metadata lists "
            f"{listed.sum()} (first difference: {dataset.labels[wrong[0]]}, {found[wrong[0]]} of "
            f"{listed[wrong[0]]}); extract the features anew, or pass --skip-unreadable."
        )


# Forests ---------------------------------------------------------------------------------

TRUSTED_TYPES = {
    "common.discretise",
    "sklearn.preprocessing._function_transformer.FunctionTransformer",
    "sklearn.tree._tree.Tree",  # compiled and unchecked by scikit-learn: hence `check_trees`
}


def save_pipeline(path, pipeline):
    """Write a fitted scikit-learn pipeline without pickle (skops), atomically, with its checksum."""
    import skops.io

    part = Path(f"{path}.part")
    part.write_bytes(skops.io.dumps(pipeline))
    replace_with_checksum(part, path)


def load_pipeline(path):
    """A pipeline that `save_pipeline` wrote; BadInput where the file is not what its checksum was
    made of, or holds anything but a pipeline's types."""
    import skops.io

    check_file(path)
    try:
        content = Path(path).read_bytes()
        unknown = set(skops.io.get_untrusted_types(data=content)) - TRUSTED_TYPES
        if not unknown:
            pipeline = skops.io.loads(content, trusted=sorted(TRUSTED_TYPES))
            check_trees(pipeline[-1])
            return pipeline
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(f"{path} is not a whole forest ({error}); fit it anew.") from None
    raise BadInput(f"{path} holds types that are not a forest's ({min(unknown)}); fit it anew.")


def check_trees(forest):
    """ValueError where a node of a loaded tree points to itself, back, or out of its arrays."""
    for tree in (estimator.tree_ for estimator in forest.estimators_):
        number = np.arange(tree.node_count)
        for child in (tree.children_left, tree.children_right):
            inside = (child > number) & (child < tree.node_count)
            if not np.all(inside | (child == -1)):
                raise ValueError("a tree's node has no valid child")
        if np.any(tree.feature >= forest.n_features_in_):
            raise ValueError("a tree splits on a feature that there is not")


def forest_rows(model, row):
    """The study's rows for one forest: `model` as in --model, `row` as in its metrics.json."""
    original = model in ("imagenet", "none") or model.endswith(".h5")
    return rows_of(
        FOREST_ROWS,
        model="original" if original else "fine-tuned",
        layers=row["layers"],
        discretize=row["discretize"],
        trees=row["n_estimators"],
        leaf=row["min_samples_leaf"],
    )
