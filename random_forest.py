"""A random forest on VGG16's features (STUDY, "Feature extraction and random forest").

    python random_forest.py --leaf 2 --trees 50           the study's best on the original VGG16
    python random_forest.py --grid                        every setting and layer set of the study
    python random_forest.py --model RUN --leaf 2 --trees 50       on a fine-tuned network
    python random_forest.py --classifier linear --discretize      a linear classifier instead
    python random_forest.py --classifier extra-trees              a forest in half the time

--discretize puts the full-network embedding (Garcia-Gasulla et al. 2018) before the forest: each
feature standardised by the training split, then -1 below -0.25, +1 above 0.15, else 0.
Features that are not stored yet are extracted first; layer sets are columns of one extraction.

The linear classifier is a multinomial logistic regression on standardised features, what a linear SVM is
but with probabilities. The study dropped the SVM for its training time; this solver (L-BFGS on all classes
at once) needs minutes for 20,300 x 12,416 on two cores (benchmarks/README.md).
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

from common import (
    add_shared_arguments,
    parse_arguments,
    positive,
    positive_float,
    resolve_arguments,
    script_parser,
    select_layers,
)
from transfer.classifiers import FORESTS, fit_classifiers, save_pipeline
from transfer.dataset import load_dataset
from transfer.devices import cpu_threads
from transfer.features import (
    Extraction,
    Source,
    add_feature_arguments,
    check_supports,
    extract_features,
    features_folder,
    is_original,
    load_features,
    needs_dense,
    own_size,
    resolve_model,
    short_name,
    take_layers,
)
from transfer.files import read_json, write_csv, write_json
from transfer.plots import plot_confusion
from transfer.runs import describe_run, start_run
from transfer.screen import BadInput, percent, print_configuration, print_notice, print_table, run_script
from transfer.study import FOREST_LAYERS, FOREST_LEAVES, FOREST_REPORTED, FOREST_TREES, forest_rows

C_PATH = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
# What a flag is where it is not given: alone, and with --grid.
DEFAULTS = {
    "layers": (("all",), FOREST_LAYERS),
    "discretize": ((False,), (False, True)),
    "trees": ((100,), FOREST_TREES),
    "leaf": ((2,), FOREST_LEAVES),
    "c": (C_PATH, C_PATH),
}
OF_CLASSIFIER = dict.fromkeys(FORESTS, ("trees", "leaf")) | {"linear": ("c",)}  # whose flags are whose


def parse_args(argv=None):
    parser = script_parser(__doc__)
    group = parser.add_argument_group("the classifier")
    group.add_argument(
        "--classifier", choices=tuple(OF_CLASSIFIER), default="forest", help="default: %(default)s"
    )
    group.add_argument(
        "--c",
        type=positive_float,
        metavar="C",
        help="of the linear classifier: the inverse of its regularisation, as in scikit-learn "
        f"(default: the best on the validation split of {', '.join(f'{c:g}' for c in C_PATH)})",
    )
    group.add_argument("--trees", type=positive, metavar="N", help="default: 100")
    group.add_argument(
        "--leaf", type=positive, metavar="N", help="images that a leaf holds at least (default: 2)"
    )
    group.add_argument(
        "--discretize",
        action=argparse.BooleanOptionalAction,
        help="the full-network embedding first (default: no)",
    )
    group.add_argument(
        "--grid",
        action="store_true",
        help="every setting of the study: trees 100, 50, 12; leaf 2, 7, 20; layers all, last, "
        "block5_conv3; with and without --discretize; a flag that is given narrows it",
    )
    group = parser.add_argument_group("the features")
    add_feature_arguments(group)
    group.add_argument(
        "--features", metavar="DIR", help="what extract_features.py stored (default: found or made)"
    )
    add_shared_arguments(parser, resume=True)
    args = parse_arguments(parser, argv)
    return args if args.resume else resolve_settings(args)


def resolve_settings(args):
    """Make each flag of the classifier a tuple of what is tried; BadInput for one of another classifier."""
    for classifier in ("forest", "linear"):
        for flag in set(OF_CLASSIFIER[classifier]) - set(OF_CLASSIFIER[args.classifier]):
            if getattr(args, flag) is not None:
                raise BadInput(f"--{flag} is of --classifier {classifier}; leave one of the two out.")
            delattr(args, flag)
    for flag, (alone, grid) in DEFAULTS.items():
        if hasattr(args, flag):
            given = getattr(args, flag)
            setattr(args, flag, (grid if args.grid else alone) if given is None else (given,))
    return args


def plan_settings(args):
    """The settings of the classifiers to fit on one layer set, as `fit_classifiers` takes them."""
    if args.classifier == "linear":
        return [{"C": c} for c in sorted(args.c)]
    kind = {"classifier": args.classifier} if args.classifier != "forest" else {}
    return [
        {"min_samples_leaf": leaf, "n_estimators": trees} | kind
        for leaf, trees in product(args.leaf, sorted(args.trees))
    ]


def find_features(args, dataset):
    """The folder with the features of train and val, extracted first where that is needed."""
    if args.features:
        return Path(args.features)
    # One extraction serves every layer set; only dense layers are tied to one image size.
    source = Source(args.model, "all", args.image_size, args.seed, args.precision)
    if not any(map(needs_dense, args.layers)) and own_size(source) != args.image_size:
        source = replace(source, layers="conv")
    folder = features_folder(source, dataset, args.skip_unreadable)
    how = Extraction(args.batch_size, args.cache, args.skip_unreadable, args.devices)
    extract_features(source, dataset, ("train", "val"), folder, how)
    return folder


def fit_all(args, dataset, stored, columns, run):
    """Fit every setting asked for, each recorded as it ends; returns their rows of metrics.

    stored: {"train": (features, labels), "val": ...} of all layers, whose `columns` features.json lists.
    Writes the best one's pipeline, and a confusion matrix (PNG, and CSV of counts) for each classifier on
    the validation split. RUN/forests.json says which are finished: an interrupted run fits the others.
    """
    state = run / "forests.json"
    rows = read_json(state) if state.exists() else []
    planned = plan_settings(args)
    several = args.grid or len(planned) > 1
    for layers, discretize in product(args.layers, args.discretize):
        about = {"layers": layers, "discretize": discretize}
        settings = [setting for setting in planned if not is_fitted(about | setting, rows)]
        if settings and args.classifier == "linear":
            settings = planned  # each begins where the one before ended, so the path is gone again
        if settings and args.grid:
            print(f"{layers}{', discretised' * discretize}: {len(settings)} to fit", flush=True)
        train, val = ((take_layers(x, columns, layers), y) for x, y in stored.values())
        for pipeline, row, predicted, seconds in fit_classifiers(
            settings, train, val, discretize, args.seed
        ):
            row = {"layers": layers, **row}
            if is_fitted(about | {key: row[key] for key in planned[0]}, rows):
                continue
            if not args.grid or args.classifier == "linear":
                iterations = f", {row['iterations']} iterations" if "iterations" in row else ""
                print(f"Fitted in {seconds:.1f} s{iterations}.", flush=True)
            if not rows or row["val_accuracy"] >= best_forest(rows)["val_accuracy"]:
                save_pipeline(run / "pipeline.skops", pipeline)
            name = f"confusion_val/{name_of(row)}" if several else "confusion_val"
            save_confusion(run, name, dataset, row, val[1], predicted)
            rows.append(row)
            write_json(state, rows)  # last: a forest that it does not list is fitted again
    write_csv(run / "forests.csv", [{**row, "dataset": dataset.name} for row in rows])
    return rows


def is_fitted(setting, rows):
    """Whether one of `rows` is that of this setting."""
    return any(setting.items() <= row.items() for row in rows)


def best_forest(rows):
    """The last row of the best val_accuracy: the classifier whose pipeline is kept, of equals the larger
    forest or the less regularised linear one."""
    return max(reversed(rows), key=lambda row: row["val_accuracy"])


def name_of(row):
    """One setting as part of a file's name."""
    if "C" in row:
        setting = f"linear-c{row['C']:g}"
    else:
        setting = f"leaf{row['min_samples_leaf']}-trees{row['n_estimators']}"
    return f"{row['layers']}-{setting}" + "-discretised" * row["discretize"]


def save_confusion(run, name, dataset, row, labels, predicted):
    """Write one classifier's confusion matrix on the validation split as PNG and as CSV of counts."""
    from sklearn.metrics import confusion_matrix

    (run / name).parent.mkdir(exist_ok=True)
    counts = confusion_matrix(labels, predicted, labels=range(len(dataset.labels)))
    title = f"{run.name}, validation: {percent(row['val_accuracy'])}"
    plot_confusion(counts, dataset.labels, run / f"{name}.png", title, dataset.notice)
    cells = [{"true": label, **dict(zip(dataset.labels, c))} for label, c in zip(dataset.labels, counts)]
    write_csv(run / f"{name}.csv", [{**row, "dataset": dataset.name} for row in cells])


def print_rows(rows, original, dataset):
    """The rows of metrics.json as a table, forests beside the study's figures where those say anything."""
    study = dataset.study_cell
    names = {"min_samples_leaf": "leaf", "n_estimators": "trees", "C": "C"}
    settings = [key for key in names if key in rows[0]]
    header = ("layers", "features", "discretised", *(names[key] for key in settings))
    table = []
    for row in rows:
        same = " / ".join(f"{r['val_accuracy']:.0f}%" for r in forest_rows(original, row)) or "-"
        setting = ("yes" if row["discretize"] else "no", *(row[key] for key in settings))
        figures = (percent(row["accuracy"]), percent(row["val_accuracy"]))
        table.append((row["layers"], row["n_features"], *setting, *figures, *study(same)))
    print_table((*header, "accuracy", "val accuracy", *study("study, MAMe")), table)


def main(argv=None):
    args = parse_args(argv)
    dataset = load_dataset(args.data, args.seed)
    resolve_model(args, dataset)
    resolve_arguments(args, dataset)
    print_configuration(args, dataset, f"CPU, {cpu_threads()} threads (scikit-learn)")

    folder = find_features(args, dataset)
    notes = read_json(folder / "features.json")
    columns, stored = notes["layers"], {}  # bad input ends here, before a run begins
    for layers in args.layers:
        select_layers(list(columns), layers)
    for split in ("train", "val"):
        features, labels, _ = load_features(folder, dataset, split)
        check_supports(dataset, split, labels, args.skip_unreadable)
        stored[split] = features, labels

    source = short_name(notes["model"])
    setting = args.layers[0].replace(",", "+")
    if args.classifier != "linear":
        setting += f"-trees{args.trees[0]}-leaf{args.leaf[0]}"
    elif len(args.c) == 1:
        setting += f"-c{args.c[0]:g}"
    setting = "grid" if args.grid else setting + "-discretised" * args.discretize[0]
    config = describe_run(args, dataset, features={**notes, "folder": str(folder)})
    with start_run(config, f"{args.classifier}-{source}-{setting}", args.resume or args.out) as run:
        rows = fit_all(args, dataset, stored, columns, run)
        about = {"dataset": dataset.name, "notice": dataset.notice}
        write_json(run / "metrics.json", {**about, **best_forest(rows), "forests": rows})
        (run / "forests.json").unlink()

    print()
    print_notice(dataset.notice)
    print_rows(rows, is_original(notes["model"]), dataset)
    if args.classifier == "forest" and not dataset.in_folders:
        print("\nThe study reports more forests, without saying which setting gave which figure:")
        print_table(("layers", "val accuracy on MAMe, %"), FOREST_REPORTED.items())
    print(f"\nResults: {run}/ (metrics.json, forests.csv, confusion_val, pipeline.skops: the best)")
    print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
