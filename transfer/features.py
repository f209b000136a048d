"""The features of classifiers: extracted, stored, found again and loaded."""

import csv
import hashlib
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from common import build_model, convolutions, feature_extractor, layer_names, parse_layers
from transfer import runs
from transfer.activations import cache_outputs, device_batch, output_file
from transfer.console import BadInput
from transfer.devices import on_devices
from transfer.files import (
    ArrayFile,
    build_or_load_array,
    locked,
    printable,
    read_csv,
    read_json,
    short_name,
    write_csv,
    write_json,
)
from transfer.folders import RECORD
from transfer.images import Rows, decode_all, load_images
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
    cache: str = "data/cache"
    skip_unreadable: bool = False
    devices: int = None
    part: tuple = (1, 1)  # (K, N): batches K, K + N, K + 2 N ... alone


def resolve_weights(args, dataset):
    """Fill --weights with the dataset's default, and --image-size with that of a network named by it."""
    args.weights = args.weights or dataset.defaults["weights"]
    if args.image_size is None:
        args.image_size = input_size(args.weights)


def needs_dense(layers):
    """Whether --layers asks for dense layers, which are tied to one image size."""
    return layers == "all" or "fc" in layers


def own_size(source):
    """The image size that the dense layers of a FeatureSpec take, in pixels: its own where they are drawn."""
    if source.weights == "none":
        return source.image_size
    return input_size(source.weights) or ORIGINAL_SIZE


def has_dense(source):
    """Whether a FeatureSpec has dense layers; BadInput where they do not fit its image size."""
    weights, size, own = source.weights, source.image_size, own_size(source)
    dense, of_file = needs_dense(source.layers), weights not in ("imagenet", "none")
    if of_file and source.layers == "all" and not input_size(weights):
        dense = "fc1" in read_weights(weights)
    if dense and size != own:
        advice = f"drop --image-size, or use --layers conv with --image-size {size}"
        raise BadInput(
            f"The dense layers of {weights} take images of {own} pixels alone; {advice}."
        )
    return dense


def build_network(source):
    """The network of a FeatureSpec with its weights: a Keras model that has at least the layers asked for.
    BadInput where its dense layers are asked for and do not fit the image size."""
    weights, size = source.weights, source.image_size
    dense = has_dense(source)
    if input_size(weights) == size:
        model = load_model(weights)
    else:
        model = build_model(size, 1000, "fc" if dense else "gap")
        layers = convolutions(model) + (["fc1", "fc2"] if dense else [])
        load_weights(model, weights, source.seed, layers)
    return with_precision(model, source.precision)


def spec_of(notes):
    """The FeatureSpec that features.json, or a run's record of it, tells of."""
    settings = {key: notes[key] for key in ("weights", "image_size", "seed", "precision")}
    return FeatureSpec(layers=",".join(notes["layers"]), **settings)


def features_folder(source, dataset, skip_unreadable):
    """Default folder of the features of a FeatureSpec on a dataset: the same inputs, the same folder."""
    weights = {"imagenet": "imagenet", "none": f"none seed {source.seed}"}.get(source.weights)
    if not weights:
        with open(model_file(source.weights), "rb") as file:
            weights = hashlib.file_digest(file, "sha256").hexdigest()
    layers, size = source.layers, source.image_size
    key = f"{weights} {dataset.content_key} {size} {layers} {skip_unreadable} {source.precision}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    name = short_name(
        f"{dataset.name}-{Path(source.weights).stem}-{size}-{layers.replace(',', '+')}"
    )
    return Path("features") / f"{name}-{digest}"


def extract_features(source, dataset, splits, folder, settings, check=False):
    """Write the features of `splits` to `folder`, those that are not there yet: <split>.npy, float32 (n,
    n_features), or <split>.part-K-of-N.npy, resumed at the last batch; <split>.csv with file, label and
    class of each row; features.json with the layer map and the images left out. settings: an ExtractionOptions.
    check: BadInput even where all are there and another network or other pictures made them."""
    missing = [split for split in splits if not has_features(folder, split)]
    if not missing and not check:
        refuse_now_readable(folder, dataset)
        return
    with on_devices(settings.devices, settings.batch_size) as (_, computes_on):
        settings = replace(settings, batch_size=device_batch(settings.batch_size))
        model = build_network(source)
        names = layer_names(model, source.layers)
        pooled, columns = feature_extractor(model, names)
        wanted = (
            SPLITS if "train" in missing else missing
        )  # what of test cannot be read is said at once
        given = source.image_size, settings.cache, settings.skip_unreadable
        dataset = load_images(dataset, wanted, *given)
        digest = weights_digest(model, names)
        notes = asdict(source) | {"layers": columns, "weights_sha256": digest}
        notes |= {"dataset": runs.describe_dataset(dataset), "versions": runs.describe_versions()}
        notes["batch_size"] = settings.batch_size
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            write_notes(folder, notes, dataset, missing, settings.part)
        if missing:
            print(f"Extracting the features of {', '.join(missing)} into {folder}/")
            print(f"  computed on {computes_on}", flush=True)
        for split in missing:
            extract_split(pooled, dataset.splits[split].images, folder, split, settings)


def write_notes(folder, notes, dataset, splits, part):
    """Write features.json, and <split>.csv of `splits`, before their features: those say that a split is
    whole. BadInput where features are there that other settings made."""
    path, skipped = folder / "features.json", set(dataset.skipped)
    stored = read_json(path) if path.exists() else {}
    if stored:
        decisive = ("weights_sha256", "image_size", "precision", "layers")
        for key in decisive if part == (1, 1) else (*decisive, "batch_size"):
            if stored.get(key) != notes[key]:
                raise BadInput(
                    f"The features in {folder} are of another {key}; name another folder."
                )
        check_pictures(stored, dataset, folder)
        skipped |= set(stored["skipped_images"])
    if sorted(skipped) != stored.get("skipped_images"):
        write_json(path, {**notes, **stored, "skipped_images": sorted(skipped)})
    for split in splits:
        rows, name, labels = dataset.splits[split], dataset.name, dataset.labels
        found = zip(rows.files, rows.labels)
        lines = [{"file": f, "label": n, "class": labels[n], "dataset": name} for f, n in found]
        write_csv(folder / f"{split}.csv", lines)


def extract_split(pooled, images, folder, split, settings):
    """Write the features of one split, or of a part of its batches."""
    (part, count), batch_size = settings.part, settings.batch_size
    name, description = f"{split}.npy", f"the {split} features"
    if count > 1:
        rows = np.arange(len(images))
        rows = rows[rows // batch_size % count == part - 1]
        if not len(rows):
            raise BadInput(f"--part {part}/{count}: the {split} split has fewer batches; lower N.")
        images, name = Rows(images, rows), f"{split}.part-{part}-of-{count}.npy"
        description += f", part {part} of {count}"
    file = output_file(pooled, len(images), folder / name, description)
    cache_outputs(pooled, images, file, batch_size)
    print(f"  {file.path}: {file.shape[0]} images, {file.shape[1]} features", flush=True)


def has_features(folder, split):
    """Whether the features of a split are in `folder`; where all its parts are, they are joined first."""
    path, parts = folder / f"{split}.npy", {}
    for file in folder.glob(f"{split}.part-*-of-*.npy"):
        part, count = map(int, re.findall(r"part-(\d+)-of-(\d+)", file.name)[0])
        parts.setdefault(count, {})[part] = file
    whole = next((found for count, found in parts.items() if len(found) == count), None)
    if whole and not path.exists():
        arrays = [np.load(whole[part], mmap_mode="r", allow_pickle=False) for part in sorted(whole)]
        block, count = read_json(folder / "features.json")["batch_size"], len(arrays)

        def blocks(starts):
            for start in starts:
                first = start // block // count * block
                yield arrays[start // block % count][first : first + block]

        shape = (sum(map(len, arrays)), arrays[0].shape[1])
        file = ArrayFile(path, shape, "float32", f"joining the {split} features")
        build_or_load_array(file, blocks, block)
        for file in whole.values():
            file.unlink(missing_ok=True)
    return path.exists()


def check_pictures(notes, dataset, folder):
    """BadInput, which says how many are gone and new, where features in `folder` are of other pictures."""
    if notes.get("dataset", {}).get("content_key") == dataset.content_key:
        return
    then, now = set(), set()
    for name, split in dataset.splits.items():
        if (folder / f"{name}.csv").exists():
            then |= {row[0] for row in read_csv(folder / f"{name}.csv", "extract them again")[1:]}
            now |= set(map(printable, split.files[split.stamps[:, 0] >= 0].tolist()))
    gone, new = len(then - now), len(now - then - set(notes.get("skipped_images", [])))
    changes = f"{gone} are gone, {new} new, or some were edited"
    record = f", as split in {dataset.root / RECORD}" * (dataset.root / RECORD).exists()
    other = f"The features in {folder} are of other pictures than {dataset.root} has{record} ({changes})"
    raise BadInput(f"{other}; extract them into a new folder, or name the other --data.")


def refuse_now_readable(folder, dataset):
    """BadInput where pictures that the features in `folder` leave out can be read by now."""
    skipped = read_json(folder / "features.json")["skipped_images"]
    unreadable = decode_all([str(dataset.image_folder / file) for file in skipped], 32)[1]
    if len(unreadable) < len(skipped):
        mended = (
            f"{len(skipped) - len(unreadable)} pictures that the features in {folder} leave out"
        )
        raise BadInput(f"{mended} can be read now; delete that folder, so that they are taken in.")


def load_features(folder, dataset, split, layers=None):
    """Features of one split, rows tied to the metadata by file name. Returns (features float32 (n,
    n_features), labels (n,), files (n,)) of all images that could be read. All layers of the file come as a
    memory map, fewer (`parse_layers`) as a copy. BadInput where they do not fit the dataset."""
    folder = Path(folder)
    notes = read_json(folder / "features.json")
    check_pictures(notes, dataset, folder)
    has_features(folder, split)
    rows, skipped = dataset.splits[split], set(notes.get("skipped_images", []))
    rows = rows.take(np.array([file not in skipped for file in rows.files.tolist()]))
    try:
        features = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
        with open(folder / f"{split}.csv", encoding="utf-8", newline="") as file:
            listed = [(row["file"], int(row["label"])) for row in csv.DictReader(file)]
        width = max(stop for _, stop in notes["layers"].values())
        if listed != list(zip(map(printable, rows.files.tolist()), rows.labels.tolist())):
            raise ValueError("other images or labels than the dataset's")
        if features.shape != (len(listed), width) or features.dtype != np.float32:
            raise ValueError(
                f"{features.dtype} {features.shape} for float32 {(len(listed), width)}"
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        damaged = f"The {split} features in {folder} are missing or damaged ({error})"
        raise BadInput(f"{damaged}; delete the folder and run extract_features.py again.") from None
    return (
        select_columns(features, notes["layers"], layers) if layers else features,
        rows.labels,
        rows.files,
    )


def select_columns(features, columns, layers):
    """The columns of `features` that --layers names: all of them as they are, fewer as a copy."""
    names = parse_layers(list(columns), layers)
    if names == list(columns):
        return features
    return np.concatenate([features[:, slice(*columns[name])] for name in names], axis=1)
