"""A random forest on VGG16's features (STUDY, "Feature extraction and random forest").

    python random_forest.py --leaf 2 --trees 50           the study's best on the original VGG16
    python random_forest.py --grid                        every setting and layer set of the study
    python random_forest.py --model RUN --leaf 2 --trees 50       on a fine-tuned network
    python random_forest.py --classifier linear --discretize      a linear classifier instead

--discretize puts the full-network embedding (Garcia-Gasulla et al. 2018) before the forest: each
feature standardised by the training split, then -1 below -0.25, +1 above 0.15, else 0.
Features that are not stored yet are extracted first; layer sets are columns of one extraction.

The linear classifier is a multinomial logistic regression on standardised features, what a linear SVM is
but with probabilities. The study dropped the SVM for its training time; this solver (L-BFGS on all classes
at once) needs minutes for 20,300 x 12,416 on two cores (benchmarks/README.md).
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np

from common import (
    add_shared_arguments,
    discretise,
    parse_arguments,
    positive,
    positive_float,
    resolve_arguments,
    select_layers,
)
from dataset import load_dataset
from features import (
    add_feature_arguments,
    check_supports,
    extract_features,
    features_folder,
    forest_rows,
    load_features,
    resolve_model,
    save_pipeline,
    take_layers,
)
from files import progress, read_json, write_csv, write_json
from record import (
    percent,
    plot_confusion,
    print_configuration,
    print_notice,
    print_table,
    run_script,
    start_run,
)
from study import FOREST_LAYERS, FOREST_LEAVES, FOREST_REPORTED, FOREST_TREES

LINEAR_C, LINEAR_GRID = 0.01, (0.001, 0.01, 0.1)
LINEAR_ITERATIONS, LINEAR_TOLERANCE = 500, 1e-4


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("the classifier")
    group.add_argument(
        "--classifier", choices=("forest", "linear"), default="forest", help="default: %(default)s"
    )
    group.add_argument(
        "--c",
        type=positive_float,
        default=LINEAR_C,
        metavar="C",
        help="of the linear classifier: the inverse of its regularisation, as in scikit-learn "
        "(default: %(default)s)",
    )
    group.add_argument("--trees", type=positive, default=100, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--leaf",
        type=positive,
        default=2,
        metavar="N",
        help="images that a leaf holds at least (default: %(default)s)",
    )
    group.add_argument("--discretize", action="store_true", help="the full-network embedding first")
    group.add_argument(
        "--grid",
        action="store_true",
        help="every setting of the study: trees 100, 50, 12; leaf 2, 7, 20; layers all, last, "
        "block5_conv3; with and without --discretize (linear: --c 0.001, 0.01, 0.1 instead)",
    )
    group = parser.add_argument_group("the features")
    add_feature_arguments(group)
    group.add_argument(
        "--features", metavar="DIR", help="what extract_features.py stored (default: found or made)"
    )
    add_shared_arguments(parser, resume=True)
    return parse_arguments(parser, argv)


def find_features(args, dataset):
    """The folder with the features of train and val, extracted first where that is needed."""
    if args.features:
        return Path(args.features)
    # One extraction serves every layer set; only VGG16's fc1 is tied to one image size.
    layers = "conv" if args.model == "imagenet" and args.image_size != 224 else "all"
    folder = features_folder(args, dataset, layers)
    if not all((folder / f"{split}.npy").exists() for split in ("train", "val")):
        print(f"Extracting the features into {folder}/", flush=True)
    extract_features(args, dataset, layers, ("train", "val"), folder)
    return folder


def embedding(discretize, standardise=False):
    """Steps of the full-network embedding for a Pipeline; none, or its first, where not `discretize`.

    StandardScaler keeps the training split's statistics, and divides a feature that never varies
    by 1: such a feature becomes 0 everywhere.
    """
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    if not discretize and not standardise:
        return []
    steps = [("standardise", StandardScaler())]
    return steps + [("discretise", FunctionTransformer(discretise))] * discretize


def fit_forests(train, val, trees, leaves, discretize, seed, description, done=()):
    """Fit a forest for each setting; yields (Pipeline, row of metrics, val predictions, seconds).

    train, val: (features float32 (n, n_features), labels (n,)). done: (leaf, trees) of those that an
    interrupted run has behind it. A forest's first 12 trees are the forest of 12 trees of the same
    seed, so larger ones grow from smaller ones (warm_start).
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import Pipeline

    settings = [(leaf, n) for leaf in leaves for n in sorted(trees) if (leaf, n) not in done]
    if not settings:
        return
    steps, (x, y), (x_val, y_val) = embedding(discretize), train, val
    for _, transformer in steps:
        x = transformer.fit_transform(x)
        x_val = transformer.transform(x_val)
    forest = None
    for leaf, n_estimators in progress(settings, description, len(settings), " forests"):
        if forest is None or forest.min_samples_leaf != leaf:
            forest = RandomForestClassifier(
                min_samples_leaf=leaf, n_jobs=-1, random_state=seed, warm_start=True
            )
        start = time.perf_counter()
        forest.set_params(n_estimators=n_estimators).fit(x, y)
        seconds = time.perf_counter() - start
        # one thread adds up the trees' votes in one order: the same figures at every run
        fitted = copy.copy(forest).set_params(warm_start=False, n_jobs=1)
        fitted.estimators_ = list(forest.estimators_)
        predicted = fitted.predict(x_val)
        row = {
            "discretize": discretize,
            "min_samples_leaf": leaf,
            "n_estimators": n_estimators,
            "n_features": x.shape[1],
            "accuracy": float(np.mean(fitted.predict(x) == y)),
            "val_accuracy": float(np.mean(predicted == y_val)),
        }
        yield Pipeline([*steps, ("forest", fitted)]), row, predicted, seconds


def fit_linear(train, val, values, discretize, description, done=()):
    """Fit the linear classifier for each C of `values`; yields what `fit_forests` yields.

    done: the values of C that an interrupted run has behind it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline

    values = [c for c in values if c not in done]
    if not values:
        return
    steps, (x, y), (x_val, y_val) = embedding(discretize, standardise=True), train, val
    print(f"Fitting linear classifiers on {len(x)} x {x.shape[1]} features: {description}", flush=True)
    for _, transformer in steps:
        x = transformer.fit_transform(x)
        x_val = transformer.transform(x_val)
    for c in progress(values, description, len(values), " classifiers"):
        start = time.perf_counter()
        classifier = LogisticRegression(C=c, max_iter=LINEAR_ITERATIONS, tol=LINEAR_TOLERANCE).fit(x, y)
        seconds = time.perf_counter() - start
        predicted = classifier.predict(x_val)
        row = {
            "discretize": discretize,
            "classifier": "linear",
            "C": c,
            "iterations": int(classifier.n_iter_[0]),
            "n_features": x.shape[1],
            "accuracy": float(np.mean(classifier.predict(x) == y)),
            "val_accuracy": float(np.mean(predicted == y_val)),
        }
        yield Pipeline([*steps, ("linear", classifier)]), row, predicted, seconds


def run_forests(args, dataset, stored, columns, layer_sets, run):
    """Fit every setting asked for, each recorded as it ends; returns their rows of metrics.

    stored: {"train": (features, labels), "val": ...} of all layers, whose `columns` features.json lists.
    Writes the best one's pipeline, and a confusion matrix (PNG, and CSV of counts) for each forest on
    the validation split. RUN/forests.json says which are finished: an interrupted run fits the others.
    """
    grid, state = args.grid, run / "forests.json"
    rows = read_json(state) if state.exists() else []
    for layers in layer_sets:
        train, val = ((take_layers(x, columns, layers), y) for x, y in stored.values())
        for discretize in (False, True) if grid else (args.discretize,):
            of_these = [row for row in rows if (row["layers"], row["discretize"]) == (layers, discretize)]
            description = f"{layers}{', discretised' * discretize}"
            if args.classifier == "linear":
                values, done = LINEAR_GRID if grid else (args.c,), {row["C"] for row in of_these}
                forests = fit_linear(train, val, values, discretize, description, done)
            else:
                forests = fit_forests(
                    train,
                    val,
                    FOREST_TREES if grid else (args.trees,),
                    FOREST_LEAVES if grid else (args.leaf,),
                    discretize,
                    args.seed,
                    description,
                    {(row["min_samples_leaf"], row["n_estimators"]) for row in of_these},
                )
            for pipeline, row, predicted, seconds in forests:
                row = {"layers": layers, **row}
                if args.classifier == "linear":
                    print(f"Fitted in {seconds:.1f} s, {row['iterations']} iterations.", flush=True)
                elif not grid:
                    print(f"Fitted {args.trees} trees in {seconds:.1f} s.")
                if not rows or row["val_accuracy"] > best_forest(rows)["val_accuracy"]:
                    save_pipeline(run / "pipeline.skops", pipeline)
                save_confusion(run, dataset, row, val[1], predicted, grid)
                rows.append(row)
                write_json(state, rows)  # last: a forest that it does not list is fitted again
    write_csv(run / "forests.csv", [{**row, "dataset": dataset.name} for row in rows])
    return rows


def best_forest(rows):
    """The first row of the best val_accuracy: the forest whose pipeline is kept."""
    return max(rows, key=lambda row: row["val_accuracy"])


def save_confusion(run, dataset, row, labels, predicted, grid):
    """Write one forest's confusion matrix on the validation split as PNG and as CSV of counts."""
    from sklearn.metrics import confusion_matrix

    name = "confusion_val"
    if grid:
        discretised = "-discretised" * row["discretize"]
        if "C" in row:
            setting = f"linear-c{row['C']:g}"
        else:
            setting = f"leaf{row['min_samples_leaf']}-trees{row['n_estimators']}"
        name += f"/{row['layers']}-{setting}{discretised}"
        (run / "confusion_val").mkdir(exist_ok=True)
    counts = confusion_matrix(labels, predicted, labels=range(len(dataset.labels)))
    title = f"{run.name}, validation: {percent(row['val_accuracy'])}"
    plot_confusion(counts, dataset.labels, run / f"{name}.png", title, dataset.notice)
    cells = [{"true": label, **dict(zip(dataset.labels, c))} for label, c in zip(dataset.labels, counts)]
    write_csv(run / f"{name}.csv", [{**row, "dataset": dataset.name} for row in cells])


def print_rows(rows, model, dataset):
    """The rows of metrics.json as a table, forests beside the study's figures where those say anything."""
    study = dataset.study_cell
    names = {"min_samples_leaf": "leaf", "n_estimators": "trees", "C": "C"}
    settings = [key for key in names if key in rows[0]]
    header = ("layers", "features", "discretised", *(names[key] for key in settings))
    table = []
    for row in rows:
        same = " / ".join(f"{r['val_accuracy']:.0f}%" for r in forest_rows(model, row)) or "-"
        setting = ("yes" if row["discretize"] else "no", *(row[key] for key in settings))
        figures = (percent(row["accuracy"]), percent(row["val_accuracy"]))
        table.append((row["layers"], row["n_features"], *setting, *figures, *study(same)))
    print_table((*header, "accuracy", "val accuracy", *study("study, MAMe")), table)


def main(argv=None):
    args = parse_args(argv)
    dataset = load_dataset(args.data, args.seed)
    resolve_model(args, dataset)
    resolve_arguments(args, dataset)
    print_configuration(args, dataset, "random_forest.py")

    folder = find_features(args, dataset)
    notes = read_json(folder / "features.json")
    layer_sets = FOREST_LAYERS if args.grid else (args.layers,)
    columns, stored = notes["layers"], {}  # bad input ends here, before a run begins
    for layers in layer_sets:
        select_layers(list(columns), layers)
    for split in ("train", "val"):
        features, labels, _ = load_features(folder, dataset, split)
        check_supports(dataset, split, labels, args.skip_unreadable)
        stored[split] = features, labels

    source = Path(notes["model"]).name.removesuffix(".keras").removesuffix(".h5")
    linear = args.classifier == "linear"
    setting = f"c{args.c:g}" if linear else f"trees{args.trees}-leaf{args.leaf}"
    setting = f"{args.layers.replace(',', '+')}-{setting}" + "-discretised" * args.discretize
    name = f"{args.classifier}-{source}-{'grid' if args.grid else setting}"
    decisive = {"features": {**notes, "folder": str(folder)}}
    with start_run(args, dataset, name, [], **decisive) as run:
        rows = run_forests(args, dataset, stored, columns, layer_sets, run)
        about = {"dataset": dataset.name, "notice": dataset.notice}
        write_json(run / "metrics.json", {**about, **best_forest(rows), "forests": rows})
        (run / "forests.json").unlink()

    print()
    print_notice(dataset.notice)
    print_rows(rows, notes["model"], dataset)
    if not linear and not dataset.in_folders:
        print("\nThe study reports more forests, without saying which setting gave which figure:")
        print_table(("layers", "val accuracy on MAMe, %"), FOREST_REPORTED.items())
    print(f"\nResults: {run}/ (metrics.json, forests.csv, confusion_val, pipeline.skops: the best)")
    print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
