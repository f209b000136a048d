"""A random forest on VGG16's features (STUDY, "Feature extraction and random forest").

    python random_forest.py --leaf 2 --trees 50           the study's best on the original VGG16
    python random_forest.py --grid                        every setting and layer set of the study
    python random_forest.py --weights RUN --leaf 2 --trees 50     on a fine-tuned network
    python random_forest.py --classifier linear           a linear classifier instead

--discretize puts the full-network embedding (Garcia-Gasulla et al. 2018) before the forest: each feature
standardised by the training split, then -1 below -0.25, +1 above 0.15, else 0. The linear classifier is a
ridge regression on their standardised square roots. Features that are not stored yet are extracted first.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from transfer import flags
from transfer.console import (
    BadInput,
    percent,
    print_configuration,
    print_notice,
    print_table,
    run_script,
)
from transfer.files import short_name
from transfer.study import FOREST_LAYERS, FOREST_LEAVES, FOREST_TREES, forest_rows

ALPHAS = (100.0, 300.0, 1000.0, 3000.0)
# What a flag is where it is not given: alone, and with --grid; and the one classifier that has it.
DEFAULTS = {
    "layers": (("all",), FOREST_LAYERS, None),
    "discretize": ((False,), (False, True), "forest"),
    "trees": ((100,), FOREST_TREES, "forest"),
    "leaf": ((2,), FOREST_LEAVES, "forest"),
    "alpha": (ALPHAS, ALPHAS, "linear"),
}


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    add = parser.add_argument_group("the classifier").add_argument
    add("--classifier", choices=("forest", "linear"), default="forest", help="default: %(default)s")
    tried = ", ".join(map("{:g}".format, ALPHAS))
    text = f"penalty of large weights (default: the best of {tried} on validation)"
    add("--alpha", type=flags.positive_float, metavar="A", help=text)
    add("--trees", type=flags.positive, metavar="N", help="default: 100")
    add("--leaf", type=flags.positive, metavar="N", help="least images in a leaf (default: 2)")
    add(
        "--discretize",
        action=argparse.BooleanOptionalAction,
        help="the full-network embedding first",
    )
    flags.add_balanced(add)
    text = (
        "every setting of the study, with and without --discretize; a flag that is given narrows it"
    )
    add("--grid", action="store_true", help=text)
    group = parser.add_argument_group("the features")
    flags.add_feature_arguments(group)
    group.add_argument(
        "--features", metavar="DIR", help="what extract_features.py stored (default: made)"
    )
    flags.add_shared_arguments(parser)
    args = parser.parse_args(argv)
    for flag, (
        alone,
        grid,
        classifier,
    ) in DEFAULTS.items():  # each becomes a tuple of what is tried
        given = getattr(args, flag)
        if classifier in (None, args.classifier):
            setattr(args, flag, (grid if args.grid else alone) if given is None else (given,))
        elif given is not None:
            raise BadInput(f"--{flag} is for --classifier {classifier}; drop one of the two.")
    return args


def plan_settings(args):
    """{(layers, discretize): the settings of the classifiers to fit, as `fit_classifiers` takes them}."""
    if args.classifier == "linear":
        settings = [{"alpha": alpha} for alpha in sorted(args.alpha)]
    else:
        pairs = product(args.leaf, sorted(args.trees))
        settings = [{"min_samples_leaf": leaf, "n_estimators": trees} for leaf, trees in pairs]
    weighed = {"class_weight": "balanced"} if args.balanced else {}
    settings = [setting | weighed for setting in settings]
    return dict.fromkeys(product(args.layers, args.discretize or (False,)), settings)


def find_features(args, dataset):
    """The folder with the features of train and val, extracted first where that is needed."""
    from transfer import features

    if args.features:
        return Path(args.features)
    # One extraction serves every layer set; only dense layers are tied to one image size.
    source = features.FeatureSpec(args.weights, "all", args.image_size, args.seed, args.precision)
    if (
        not any(map(features.needs_dense, args.layers))
        and features.own_size(source) != args.image_size
    ):
        source = replace(source, layers="conv")
    folder = features.features_folder(source, dataset, args.skip_unreadable)
    settings = features.ExtractionOptions(
        args.batch_size, args.cache, args.skip_unreadable, args.devices
    )
    features.extract_features(source, dataset, ("train", "val"), folder, settings)
    return folder


def print_rows(rows, original, dataset):
    """The rows of metrics.json as a table, forests beside the study's figures where those say anything."""
    study, table = dataset.study_cell, []
    names = {"min_samples_leaf": "leaf", "n_estimators": "trees", "alpha": "alpha"}
    settings = [key for key in names if key in rows[0]]
    for row in rows:
        same = " / ".join(f"{r['val_accuracy']:.0f}%" for r in forest_rows(original, row)) or "-"
        setting = (
            row["layers"],
            row["n_features"],
            row["discretize"],
            *(row[key] for key in settings),
        )
        table.append(
            (*setting, percent(row["accuracy"]), percent(row["val_accuracy"]), *study(same))
        )
    header = ("layers", "features", "discretized", *(names[key] for key in settings), "accuracy")
    print_table((*header, "val accuracy", *study("study, MAMe")), table)


def run_name(args, source):
    """What is run, as the name of its folder."""
    layers = "grid" if args.grid else short_name(args.layers[0].replace(",", "+"))
    name = f"{args.classifier}-{source}-{layers}" + "-balanced" * args.balanced
    if args.grid:
        return name
    if args.classifier == "linear":
        return name + (f"-alpha{args.alpha[0]:g}" if len(args.alpha) == 1 else "")
    return f"{name}-trees{args.trees[0]}-leaf{args.leaf[0]}" + "-discretized" * args.discretize[0]


def main(argv=None):
    args = parse_args(argv)
    from common import parse_layers
    from transfer import classifiers, features, runs
    from transfer.data import load_dataset
    from transfer.files import read_json, write_csv, write_json
    from transfer.weights import is_published_vgg16

    dataset = load_dataset(args.data, args.seed)
    features.resolve_weights(args, dataset)
    flags.resolve_arguments(args, dataset)
    print_configuration(args, dataset)

    folder = find_features(args, dataset)
    notes = read_json(folder / "features.json")
    for layers in args.layers:  # bad input ends here, before a run begins
        parse_layers(list(notes["layers"]), layers)
    stored = {
        split: features.load_features(folder, dataset, split)[:2] for split in ("train", "val")
    }
    config = runs.describe_run(args, dataset, features={**notes, "folder": str(folder)})
    name = run_name(args, Path(notes["weights"]).stem)
    with runs.start_run(config, name, args.out) as run:
        rows = classifiers.fit_all(
            plan_settings(args), dataset, stored, notes["layers"], run, args.seed
        )
        write_csv(run / "classifiers.csv", [{**row, "dataset": dataset.name} for row in rows])
        origin = {"dataset": dataset.name, "notice": dataset.notice}
        write_json(
            run / "metrics.json", origin | classifiers.best_row(rows) | {"classifiers": rows}
        )
        (run / "classifiers.json").unlink()

    print()
    print_notice(dataset.notice)
    print_rows(rows, is_published_vgg16(notes["weights"]), dataset)
    print(
        f"\nResults: {run}/ (metrics.json, classifiers.csv; of the best pipeline.skops, confusion_val.png)"
    )
    print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
