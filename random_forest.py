"""A random forest on VGG16's features (STUDY, "Feature extraction and random forest").

    python random_forest.py --leaf 2 --trees 50           the study's best on the original VGG16
    python random_forest.py --grid                        every setting and layer set of the study
    python random_forest.py --weights RUN --leaf 2 --trees 50     on a fine-tuned network
    python random_forest.py --classifier linear           a linear classifier instead
    python random_forest.py --classifier linear --folds 5     every picture tested, then trained on

--discretize puts the full-network embedding (Garcia-Gasulla et al. 2018) before the forest: each
feature standardised by the training split, then -1 below -0.25, +1 above 0.15, else 0. The linear
classifier is a ridge regression on the features' standardised square roots. --folds is for few
pictures: the classifier is fitted K times, each time without a Kth of them, which it then answers.
Those answers say how good it is, and which labels are suspect; the one that is kept is fitted on
all pictures. Features that are not stored yet are extracted first.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from transfer import flags
from transfer.console import BadInput, print_configuration, print_next, run_script
from transfer.files import short_name
from transfer.study import FOREST_LAYERS, FOREST_LEAVES, FOREST_TREES, SPLITS

ALPHAS = (100.0, 300.0, 1000.0, 3000.0)
# Flag: its value where it is not given, its value then with --grid, and the one classifier that has
# it. All values of a tuple are tried.
DEFAULTS = {
    "layers": ("all", FOREST_LAYERS, None),
    "discretize": (False, (False, True), "forest"),
    "trees": (100, FOREST_TREES, "forest"),
    "leaf": (2, FOREST_LEAVES, "forest"),
    "alpha": (ALPHAS, ALPHAS, "linear"),
}


def add_classifier_arguments(parser):
    """The flags of what is fitted; those of DEFAULTS are None where they are not given."""
    add = parser.add_argument_group("the classifier").add_argument
    add(
        "--classifier",
        choices=("forest", "linear"),
        default="forest",
        help="classifier to fit (default: %(default)s)",
    )
    add(
        "--alpha",
        type=flags.positive_float,
        metavar="A",
        help="penalty of large weights (default: the best of 100, 300, 1000, 3000 on validation, "
        "with --folds on each fold's training pictures)",
    )
    add("--trees", type=flags.positive, metavar="N", help="number of trees (default: 100)")
    add("--leaf", type=flags.positive, metavar="N", help="minimum images per leaf (default: 2)")
    add(
        "--discretize",
        action=argparse.BooleanOptionalAction,
        help="reduce each feature to -1, 0 or +1 first (full-network embedding; default: no)",
    )
    flags.add_balanced(add)
    group = parser.add_argument_group("how many are fitted").add_mutually_exclusive_group()
    group.add_argument(
        "--grid",
        action="store_true",
        help="every setting of the study, with and without --discretize; "
        "flags that you give restrict it",
    )
    group.add_argument(
        "--folds",
        type=flags.folds,
        metavar="K",
        help="cross-validation over the pictures of all splits, of one setting, in 3 folds or more "
        "(5, say); the classifier is then fitted on all of them, so that none is left for a test",
    )


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    add_classifier_arguments(parser)
    group = parser.add_argument_group("the features")
    flags.add_feature_arguments(group)
    group.add_argument(
        "--features", metavar="DIR", help="folder of stored features (default: extracted first)"
    )
    flags.add_shared_arguments(parser)
    return fill_defaults(parser.parse_args(argv))


def fill_defaults(args):
    """Fill the flags not given from DEFAULTS; BadInput where one is of the other classifier."""
    for flag, (alone, grid, classifier) in DEFAULTS.items():
        given = getattr(args, flag) is not None
        if classifier in (None, args.classifier):
            if not given:
                setattr(args, flag, grid if args.grid else alone)
        elif given:
            raise BadInput(f"--{flag} is for --classifier {classifier}; drop one of the two.")
    return args


def values_of(setting):
    """The values to try: those of a tuple, else the one that was given."""
    return setting if isinstance(setting, tuple) else (setting,)


def plan_settings(args):
    """What to fit: [(layers, discretize, setting as `new_pipeline` takes it)]."""
    from sklearn.model_selection import ParameterGrid

    if args.classifier == "linear":
        grid = {"alpha": values_of(args.alpha)}
    else:
        trees = sorted(values_of(args.trees))
        grid = {"min_samples_leaf": values_of(args.leaf), "n_estimators": trees}
    if args.balanced:
        grid["class_weight"] = ["balanced"]

    discretize = values_of(args.discretize or False)
    return list(product(values_of(args.layers), discretize, ParameterGrid(grid)))


def extract_features(args, dataset, splits):
    """The folder where the features of `splits` lie; those not there yet are extracted."""
    from transfer import features

    # one extraction serves every layer set; only dense layers are tied to one image size
    spec = features.FeatureSpec(args.weights, "all", args.image_size, args.seed, args.precision)
    dense = any(map(features.needs_dense, values_of(args.layers)))
    if not dense and features.own_size(spec) != args.image_size:
        spec = replace(spec, layers="conv")

    options = features.ExtractionOptions(
        args.batch_size, args.cache, args.skip_unreadable, args.devices
    )
    return features.extract_features(spec, dataset, splits, options)


def load_stored(args, dataset):
    """(The content of features.json, {split: as `features.load_features` gives it}) of the splits
    that are needed, their features extracted where they are not there yet."""
    from common import parse_layers
    from transfer.features import load_features
    from transfer.files import read_json

    splits = SPLITS if args.folds else SPLITS[:2]
    folder = Path(args.features or extract_features(args, dataset, splits))
    notes = read_json(folder / "features.json")
    for layers in values_of(args.layers):
        parse_layers(list(notes["layers"]), layers)
    # a grid selects the columns of each layer set from all
    layers = args.layers if args.folds else None
    return notes, {split: load_features(folder, dataset, split, layers) for split in splits}


def name_run(args, weights):
    """What is run, as the name of its folder. weights: of the network, as in --weights."""
    from transfer.runs import run_name

    if args.grid:
        tried = "grid"
    else:
        tried = short_name(args.layers)
        if args.classifier == "forest":
            tried += f"-trees{args.trees}-leaf{args.leaf}"
    return run_name(
        args.classifier,
        Path(weights).stem,
        tried,
        discretized=args.discretize is True,
        balanced=args.balanced,
        folds=args.folds,
    )


def main(argv=None):
    args = parse_args(argv)
    from transfer.classifiers import best_row, fit_all
    from transfer.data import load_dataset
    from transfer.features import resolve_weights
    from transfer.files import write_csv, write_json
    from transfer.folds import assign_folds, fit_folds
    from transfer.report import print_run
    from transfer.runs import describe_run, read_run, start_run

    dataset = load_dataset(args.data, args.seed, args.cache)
    resolve_weights(args, dataset)
    flags.resolve_arguments(args, dataset)
    print_configuration(args, dataset)

    # input that cannot be used ends here, before a run begins
    notes, stored = load_stored(args, dataset)
    if args.folds:
        folds = assign_folds(dataset, stored, args.folds, args.seed)

    # every setting, the best one kept
    config = describe_run(args, dataset, features=notes)
    with start_run(config, name_run(args, notes["weights"]), args.out) as run:
        plan = plan_settings(args)
        if args.folds:
            rows = fit_folds(plan, dataset, stored, folds, run, args.seed)
        else:
            rows = fit_all(plan, dataset, stored, notes["layers"], run, args.seed)
        write_csv(run / "classifiers.csv", [{**row, "dataset": dataset.name} for row in rows])
        origin = {"dataset": dataset.name, "notice": dataset.notice}
        write_json(run / "metrics.json", {**origin, **best_row(rows), "classifiers": rows})
        (run / "classifiers.json").unlink(missing_ok=True)

    print_run(read_run(run))
    print(f"\nResults: {run}/ (metrics.json, classifiers.csv; pipeline.skops, the best of them)")
    print_next("test_model.py", run=run)


if __name__ == "__main__":
    run_script(main)
