"""Features of images, stored: which network's they are, how they are computed, read and checked."""

import csv
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from common import (
    add_compute_arguments,
    build_model,
    convolutions,
    feature_layers,
    import_keras,
    outputs_of,
    pooled_model,
    select_layers,
)
from transfer.dataset import supports
from transfer.devices import Share, distributed, share_of_environment
from transfer.files import (
    LOCK,
    ArrayFile,
    check_file,
    file_digest,
    locked,
    make_array_together,
    read_json,
    write_csv,
    write_json,
)
from transfer.images import load_images
from transfer.runs import describe_dataset, describe_versions
from transfer.screen import BadInput
from transfer.weights import (
    input_size,
    load_model,
    load_weights,
    model_file,
    read_weights,
    weights_digest,
    with_precision,
)

ORIGINAL_SIZE = 224  # of the images that the original VGG16's fc1 takes, in pixels


@dataclass(frozen=True)
class Source:
    """Which features: all that decides their values beside the images."""

    model: str  # as in --model
    layers: str  # as in --layers
    image_size: int
    seed: int
    precision: str


@dataclass(frozen=True)
class Extraction:
    """How features are computed: nothing of this changes them."""

    batch_size: int
    cache: str = "data/cache"
    skip_unreadable: bool = False
    devices: int = None
    workers: bool = False  # whether the environment's workers share the images out


def add_feature_arguments(group, layers=None, workers=False):
    """--layers and --model: which features are taken, and whose. layers: the default. workers: as in
    `add_compute_arguments`."""
    group.add_argument(
        "--layers",
        default=layers,
        help="all, conv, last (of each block), or names separated by commas (default: all)",
    )
    group.add_argument(
        "--model",
        metavar="M",
        help="imagenet or none (the original VGG16, trained or drawn anew), a run, a .keras file or an "
        "official Keras .h5 (default: the dataset's; MAMe imagenet, demo none)",
    )
    add_compute_arguments(group, workers)


def resolve_model(args, dataset):
    """Fill --model with the dataset's default, and --image-size with that of a network given as model."""
    args.model = args.model or dataset.defaults["weights"]
    if args.image_size is None and not is_original(args.model):
        args.image_size = input_size(args.model)


def is_original(model):
    """Whether --model names VGG16 as it was published, rather than a .keras file or a run."""
    return model in ("imagenet", "none") or model.endswith(".h5")


def needs_dense(layers):
    """Whether --layers asks for dense layers, which are tied to one image size."""
    return layers == "all" or "fc" in layers


def own_size(source):
    """The image size that the dense layers of a Source take: any, so its own, where they are drawn anew."""
    if source.model == "none":
        return source.image_size
    return ORIGINAL_SIZE if is_original(source.model) else input_size(source.model)


def build_network(source):
    """The network of a Source with its weights: a Keras model that has at least the layers asked for.

    BadInput where its dense layers are asked for and do not fit the image size.
    """
    model, size, own = source.model, source.image_size, own_size(source)
    dense = needs_dense(source.layers)
    if model.endswith(".h5") and source.layers == "all":
        dense = "fc1" in read_weights(model, flag="--model")
    if dense and size != own:
        raise BadInput(
            f"The dense layers of {model} take images of {own} pixels alone; leave --image-size out, or "
            f"use --layers conv (or last, or names of convolutions) with --image-size {size}."
        )
    if not is_original(model) and size == own:
        return load_model(model)
    network = build_model(size, 1000, "fc" if dense else "gap")
    layers = convolutions(network) + (["fc1", "fc2"] if dense else [])
    load_weights(network, model, source.seed, layers, "--model")
    return network


def features_folder(source, dataset, skip_unreadable):
    """Default folder of the features of a Source on a dataset: the same inputs, the same folder."""
    weights = {"imagenet": "imagenet", "none": f"none seed {source.seed}"}.get(source.model)
    weights = weights or file_digest(model_file(source.model))
    layers, size = source.layers, source.image_size
    key = f"{weights} {dataset.fingerprint} {size} {layers} {skip_unreadable}"
    key += "" if source.precision == "float32" else f" {source.precision}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    name = f"{dataset.name}-{short_name(source.model)}-{size}-{layers.replace(',', '+')}-{digest}"
    return Path("features") / name


def short_name(model):
    """--model as part of a folder's name."""
    return Path(model).name.removesuffix(".keras").removesuffix(".h5")


def extract_features(source, dataset, splits, folder, how, check=False):
    """Write the features of `splits` to `folder`, those that are not there yet.

    For each split: <split>.npy, float32 (n, n_features), written batch by batch and resumed at the
    last one after an interruption; <split>.csv with file, label and medium of each row; and for all of
    them features.json with the layer map and the images that were left out. how: an Extraction.
    Nothing is loaded, not even Keras, where all splits are there already, unless `check`: then
    BadInput tells where what is there was made by another model or from another dataset.
    """
    missing = missing_features(folder, splits)
    if not missing and not check:
        return
    import_keras()
    with distributed(how.devices, False, how.batch_size) as (_, computes_on):
        share = share_of_environment() if how.workers else Share()
        network = with_precision(build_network(source), source.precision)
        names = feature_layers(network, source.layers)
        pooled, columns = pooled_model(network, names)
        dataset = load_images(dataset, missing, source.image_size, how.cache, how.skip_unreadable)
        notes = {
            **asdict(source),
            "weights_sha256": weights_digest(network, names),
            "layers": columns,
            "dataset": describe_dataset(dataset),
            "versions": describe_versions(),
        }
        with locked(folder / LOCK):
            stored = read_json(folder / "features.json") if (folder / "features.json").exists() else {}
            if stored:
                check_same(stored, notes, folder)
            skipped = sorted({*stored.get("skipped_images", []), *dataset.skipped})
            if not stored or skipped != stored.get("skipped_images", []):
                write_json(folder / "features.json", {**notes, **stored, "skipped_images": skipped})
            missing = missing_features(folder, missing)  # less where another process made them
            for split in missing:  # first: the .npy says that the split is whole
                rows = dataset.splits[split]
                lines = [
                    {"file": file, "label": label, "medium": dataset.labels[label], "dataset": dataset.name}
                    for file, label in zip(rows.files, rows.labels)
                ]
                write_csv(folder / f"{split}.csv", lines)
        if missing:
            print(f"Extracting the features of {', '.join(missing)} into {folder}/")
            print(f"  computed on {computes_on}", flush=True)
        for split in missing:
            images = dataset.splits[split].images
            shape = (len(images), pooled.output_shape[-1])
            file = ArrayFile(folder / f"{split}.npy", shape, "float32", f"the {split} features")
            produce = outputs_of(pooled, images, how.batch_size)
            make_array_together(file, produce, how.batch_size, share)
            print(f"  {file.path}: {shape[0]} images, {shape[1]} features", flush=True)


def missing_features(folder, splits):
    """Those of `splits` whose features are not in `folder`."""
    return [split for split in splits if not (folder / f"{split}.npy").exists()]


def check_same(stored, wanted, folder):
    """BadInput where features in `folder` were made by another model, size or dataset."""
    for key in ("weights_sha256", "image_size", "precision", "layers"):
        if stored.get(key) != wanted[key]:
            raise BadInput(
                f"The features in {folder} differ from those asked for in {key}; "
                "name another folder, or delete that one."
            )
    check_dataset(stored, wanted["dataset"]["fingerprint"], folder)


def check_dataset(stored, fingerprint, folder):
    """BadInput where features in `folder` were made from another dataset."""
    made_from = stored.get("dataset", {})
    if made_from.get("fingerprint") != fingerprint:
        raise BadInput(
            f"The features in {folder} were made from another dataset ({made_from.get('folder')}); name "
            "its folder with --data, or another one for the features."
        )


def load_features(folder, dataset, split, layers=None):
    """Features of one split, rows tied to the metadata by file name.

    Returns (features float32 (n, n_features), labels (n,), files (n,)). All layers of the file
    come as a memory map, fewer (see `select_layers`) as a copy of their columns. BadInput where the
    folder does not fit the dataset, or a file is damaged.
    """
    folder = Path(folder)
    notes = read_json(folder / "features.json")
    check_dataset(notes, dataset.fingerprint, folder)
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
    return take_layers(features, notes["layers"], layers) if layers else features, stored, files


def take_layers(features, columns, layers):
    """The columns of `features` that --layers names: all of them as they are, fewer as a copy."""
    names = select_layers(list(columns), layers)
    if names == list(columns):
        return features
    return np.concatenate([features[:, slice(*columns[name])] for name in names], axis=1)


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
