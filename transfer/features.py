"""The features of classifiers: extracted, stored, found again and loaded.

features/<name>-<digest>/    by default: the digest is of all that decides the features
    features.json            what decided them, the columns of each layer, the images left out
    <split>.csv              file, label and class of each row
    <split>.npy              float32 (n, n_features)
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from common import build_model, feature_extractor, layer_names, parse_layers
from transfer.activations import cache_outputs, device_batch, output_file
from transfer.console import BadInput
from transfer.devices import on_devices
from transfer.digests import digest_of
from transfer.files import (
    ArrayFile,
    Rows,
    build_or_load_array,
    locked,
    read_array,
    read_json,
    short_name,
    write_csv,
    write_json,
)
from transfer.flags import DEFAULT_CACHE
from transfer.images import load_images
from transfer.runs import describe_dataset, describe_versions
from transfer.study import SPLITS
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
PICTURES = "pictures (names, classes, contents)"  # in features.json
EXTRACT_AGAIN = "delete the folder and run extract_features.py again"


@dataclass(frozen=True)
class FeatureSpec:
    """Which features: all that decides their values beside the images."""

    weights: str  # as in --weights
    layers: str  # as in --layers
    image_size: int
    seed: int
    precision: str


@dataclass(frozen=True)
class ExtractionOptions:
    """How features are computed: nothing of this changes them."""

    batch_size: int
    cache: str = DEFAULT_CACHE
    skip_unreadable: bool = False
    devices: int = None
    part: tuple = (1, 1)  # (K, N): batches K, K + N, K + 2 N ... alone


# ------------------------------------------------------------------------------------ the network


def resolve_weights(args, dataset):
    """Fill --weights with the dataset's default, and --image-size with that of a network named by
    it."""
    args.weights = args.weights or dataset.defaults["weights"]
    if args.image_size is None:
        args.image_size = input_size(args.weights)


def needs_dense(layers):
    """Whether --layers asks for dense layers, which are tied to one image size."""
    return layers == "all" or "fc" in layers


def own_size(spec):
    """The image size that the dense layers of a FeatureSpec take, in pixels: its own where they are
    new."""
    if spec.weights == "none":
        return spec.image_size
    return input_size(spec.weights) or ORIGINAL_SIZE


def has_dense(spec):
    """Whether a FeatureSpec has dense layers; BadInput where they do not fit its image size."""
    weights = spec.weights
    dense = needs_dense(spec.layers)
    if spec.layers == "all" and weights not in ("imagenet", "none") and not input_size(weights):
        dense = "fc1" in read_weights(weights)
    size = own_size(spec)
    if dense and spec.image_size != size:
        raise BadInput(
            f"The dense layers of {weights} take images of {size} pixels alone; drop --image-size, "
            f"or use --layers conv with --image-size {spec.image_size}."
        )
    return dense


def build_network(spec):
    """The network of a FeatureSpec with its weights: a Keras model that has at least the layers
    asked for. BadInput where its dense layers are asked for and do not fit the image size."""
    dense = has_dense(spec)
    if input_size(spec.weights) == spec.image_size:
        model = load_model(spec.weights)
    else:
        model = build_model(spec.image_size, 1000, "fc" if dense else "gap")
        load_weights(model, spec.weights, spec.seed, layer_names(model, "all"))
    return with_precision(model, spec.precision)


# ------------------------------------------------------------------------- what decides features


def describe_decisive(spec, dataset):
    """All that decides the features of a FeatureSpec on a dataset, as {what: its value}."""
    weights = spec.weights
    if weights == "none":
        weights = f"none, seed {spec.seed}"
    elif weights != "imagenet":
        weights = digest_of(model_file(weights))
    return {
        "weights": weights,
        "layers": spec.layers,
        "image size": spec.image_size,
        "precision": spec.precision,
        PICTURES: dataset.fingerprint,
    }


def features_folder(spec, dataset, options):
    """Default folder of the features of a FeatureSpec on a dataset: in features/, or in the folder
    that --cache names. Its name has a digest of all that decides them: what is found there is
    right. options: an ExtractionOptions."""
    key = json.dumps([describe_decisive(spec, dataset), options.skip_unreadable])
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    name = f"{dataset.name}-{Path(spec.weights).stem}-{spec.image_size}-{spec.layers}"
    place = Path() if options.cache in (DEFAULT_CACHE, "none") else Path(options.cache)
    return place / "features" / f"{short_name(name)}-{digest}"


def read_notes(folder, decisive):
    """The content of features.json in `folder`, {} where it is new. decisive: as
    `describe_decisive` gives it, or that of it which counts. BadInput where the features there are
    of something else."""
    notes = read_json(folder / "features.json", {})
    for name, value in decisive.items():
        if notes and notes["decisive"].get(name) != value:
            raise BadInput(
                f"The features in {folder} are of other {name} than asked for, or of an earlier "
                f"version of these scripts; name another folder or --data, or {EXTRACT_AGAIN}."
            )
    return notes


def spec_of(notes):
    """The FeatureSpec that features.json, or a run's record of it, tells of."""
    return FeatureSpec(
        notes["weights"],
        notes["decisive"]["layers"],
        notes["image_size"],
        notes["seed"],
        notes["precision"],
    )


# ----------------------------------------------------------------------------------- extraction


def extract_features(spec, dataset, splits, options, named=None):
    """Write the features of `splits` to the folder `named`, else to their default one: those that
    are not there yet. <split>.npy, float32 (n, n_features), or <split>.part-K-of-N.npy, resumed at
    the last batch; with them <split>.csv and features.json. options: an ExtractionOptions. Returns
    the folder. BadInput as from `read_notes`, and for weights, layers, images or devices that are
    of no use."""
    folder = Path(named or features_folder(spec, dataset, options))
    decisive = describe_decisive(spec, dataset)
    read_notes(folder, decisive)
    for split in splits:
        join_parts(folder, split)
    missing = [split for split in splits if not features_file(folder, split).exists()]
    if not missing:
        return folder

    with on_devices(options.devices, options.batch_size) as (_, computes_on):
        options = replace(options, batch_size=device_batch(options.batch_size))
        model = build_network(spec)
        names = layer_names(model, spec.layers)
        pooled, columns = feature_extractor(model, names)

        # what of the test split cannot be read is said before all that takes long
        decoded = SPLITS if "train" in missing else missing
        dataset = load_images(
            dataset, decoded, spec.image_size, options.cache, options.skip_unreadable
        )

        # the notes first: a file of features says that its split is whole
        notes = {
            **asdict(spec),
            "layers": columns,
            "weights_sha256": weights_digest(model, names),
            "decisive": decisive,
            "dataset": describe_dataset(dataset),
            "versions": describe_versions(),
            "batch_size": options.batch_size,
            "skipped_images": dataset.skipped,
        }
        write_notes(folder, notes, dataset, missing, options)

        print(f"Extracting the features of {', '.join(missing)} into {folder}/")
        print(f"  computed on {computes_on}", flush=True)
        for split in missing:
            extract_split(pooled, dataset.splits[split].images, folder, split, options)
    return folder


def write_notes(folder, notes, dataset, splits, options):
    """Write features.json, or add the images that `notes` leave out to the one there is, and
    <split>.csv, which says of which image each row is. BadInput where a part would not fit into
    those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        stored = read_notes(folder, notes["decisive"]) or notes
        if options.part != (1, 1) and stored["batch_size"] != options.batch_size:
            raise BadInput(
                f"The features in {folder} are of another batch size; give all parts the same "
                "--batch-size, on devices of one kind."
            )
        skipped = {*stored["skipped_images"], *notes["skipped_images"]}
        write_json(folder / "features.json", {**stored, "skipped_images": sorted(skipped)})
        for split in splits:
            rows = dataset.splits[split]
            lines = [
                {"file": f, "label": n, "class": dataset.labels[n], "dataset": dataset.name}
                for f, n in zip(rows.files, rows.labels)
            ]
            write_csv(folder / f"{split}.csv", lines)


def features_file(folder, split, part=1, count=1):
    """The file of the features of a split, or of a part of them."""
    name = split if count == 1 else f"{split}.part-{part}-of-{count}"
    return folder / f"{name}.npy"


def extract_split(pooled, images, folder, split, options):
    """Write the features of one split, or of a part of its batches."""
    part, count = options.part
    batch = np.arange(len(images)) // options.batch_size
    rows = np.flatnonzero(batch % count == part - 1)
    if not rows.size:
        raise BadInput(f"--part {part}/{count}: the {split} split has fewer batches; lower N.")
    path = features_file(folder, split, part, count)
    file = output_file(pooled, len(rows), path, f"the {path.stem} features")
    features = cache_outputs(pooled, Rows(images, rows), file, options.batch_size)
    print(f"  {path}: {len(features)} images, {features.shape[1]} features", flush=True)


def join_parts(folder, split):
    """Where all parts of the features of a split are in `folder`, make one file of them."""
    for first in folder.glob(f"{split}.part-1-of-*.npy"):
        count = int(first.stem.rpartition("-")[2])
        parts = [features_file(folder, split, part, count) for part in range(1, count + 1)]
        if all(path.exists() for path in parts):
            notes = read_json(folder / "features.json")
            join(parts, features_file(folder, split), notes["batch_size"])


def join(parts, path, batch_size):
    """Write the features in the files `parts` to `path`, a batch of each in turn, and delete
    `parts`."""
    arrays = [read_array(part) for part in parts]

    def blocks(starts):
        for start in starts:
            turn, part = divmod(start // batch_size, len(parts))
            yield arrays[part][turn * batch_size :][:batch_size]

    shape = sum(map(len, arrays)), arrays[0].shape[1]
    whole = ArrayFile(path, shape, "float32", f"joining {path}")
    build_or_load_array(whole, blocks, batch_size)
    for part in parts:
        part.unlink(missing_ok=True)


# -------------------------------------------------------------------------------- what is stored


def load_features(folder, dataset, split, layers=None):
    """Features of one split: (features float32 (n, n_features), labels (n,), files (n,)) of all
    images that could be read, in the dataset's order. All layers of the file come as a memory map,
    fewer (`parse_layers`) as a copy. BadInput where they do not fit the dataset, and as from
    `read_notes`."""
    folder = Path(folder)
    try:
        join_parts(folder, split)
        notes = read_notes(folder, {PICTURES: dataset.fingerprint})
        rows = dataset.splits[split]
        rows = rows.take(~np.isin(rows.files, notes["skipped_images"]))
        features = read_array(features_file(folder, split))
        expected = len(rows.files), max(stop for _, stop in notes["layers"].values())
        if features.shape != expected:
            raise ValueError(f"{features.shape}, not {expected}")
        if layers:
            features = select_columns(features, notes["layers"], layers)
    except BadInput:
        raise
    except Exception as error:  # a damaged file fails in many ways, all of them final
        raise BadInput(
            f"The {split} features in {folder} are missing or damaged ({error}); {EXTRACT_AGAIN}."
        ) from None
    return features, rows.labels, rows.files


def select_columns(features, columns, layers):
    """The columns of `features` that --layers names: all of them as they are, fewer as a copy."""
    names = parse_layers(list(columns), layers)
    if names == list(columns):
        return features
    return np.concatenate([features[:, slice(*columns[name])] for name in names], axis=1)
