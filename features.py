"""What is stored between a network and a forest: features, and fitted pipelines."""

import csv
import hashlib
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
from dataset import load_images, supports
from distribution import distributed
from files import (
    BadInput,
    check_file,
    file_digest,
    locked,
    make_array,
    read_json,
    replace_with_checksum,
    write_csv,
    write_json,
)
from record import LOCK, describe_dataset, describe_versions
from study import FOREST_ROWS, rows_of
from weights import load_model, load_weights, model_file, read_weights, weights_digest, with_precision

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
    add_compute_arguments(group)


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
    key += "" if args.precision == "float32" else f" {args.precision}"
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
    with distributed(import_keras(), args):
        model = with_precision(feature_source(args, layers), args.precision)
        names = feature_layers(model, layers)
        pooled, columns = pooled_model(model, names)
        dataset, images, _ = load_images(
            dataset, missing, args.image_size, args.cache, args.skip_unreadable
        )
        notes = {
            "model": str(args.model),
            "seed": args.seed,
            "image_size": args.image_size,
            "precision": args.precision,
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
    for key in ("weights_sha256", "image_size", "precision", "layers"):
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


def load_features(folder, dataset, split, layers=None):
    """Features of one split, rows tied to the metadata by file name.

    Returns (features float32 (n, n_features), labels (n,), files (n,)). All layers of the file
    come as a memory map, fewer (see `select_layers`) as a copy of their columns. BadInput where the
    folder does not fit the dataset, or a file is damaged.
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
            if hasattr(pipeline[-1], "estimators_"):
                check_trees(pipeline[-1])
            return pipeline
    except Exception as error:  # a damaged archive fails in many ways, all of them final
        raise BadInput(f"{path} is not a whole pipeline ({error}); fit it anew.") from None
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


def pipeline_probabilities(pipeline, features, classes):
    """Probabilities float32 (n, classes) of a fitted pipeline, 0 for classes that it has not seen."""
    probabilities = np.zeros((len(features), classes), "float32")
    probabilities[:, pipeline.classes_] = pipeline.predict_proba(features)
    return probabilities


def forest_rows(model, row):
    """The study's rows for one forest: `model` as in --model, `row` as in its metrics.json."""
    if "n_estimators" not in row:  # a linear classifier
        return []
    original = model in ("imagenet", "none") or model.endswith(".h5")
    return rows_of(
        FOREST_ROWS,
        model="original" if original else "fine-tuned",
        layers=row["layers"],
        discretize=row["discretize"],
        trees=row["n_estimators"],
        leaf=row["min_samples_leaf"],
    )
