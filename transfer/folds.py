"""Cross-validation: every picture is answered by a classifier that has not seen it.

RUN/folds/    what a test writes, and suspects.csv, suspects.png: the pictures that are taken for
              another class than theirs, those first whose own class is least likely
"""

from operator import itemgetter

import numpy as np
import skops.io
from sklearn.metrics.cluster import contingency_matrix
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from transfer.classifiers import (
    find_factor,
    new_pipeline,
    to_probabilities,
    use_one_thread,
    with_softmax,
)
from transfer.console import BadInput, progress
from transfer.data import Split
from transfer.files import write_atomically, write_csv
from transfer.folders import class_of, find_copies, group_files, same_name, split_in
from transfer.plots import GALLERY_SIZE, plot_gallery
from transfer.predict import write_unseen
from transfer.report import figures_of_test, print_report, write_report

FEWEST_FOLDS = 3  # within what one leaves, a linear classifier is cross-validated too


def every_picture(dataset, stored):
    """The data.Split of the pictures of all splits, without those that have no features. stored:
    {split: as `features.load_features` gives it}."""
    columns = zip(*(split[:4] for split in dataset.splits.values()))
    every = Split(*map(np.concatenate, columns))
    files = np.concatenate([files for *_, files in stored.values()])
    return every.take(np.isin(every.files, files))


def name_in_class(file):
    """The name of a picture by which `group_files` finds its object, which may lie in several
    splits by hand."""
    *folders, name = same_name(file).split("/")
    if not folders:  # MAMe's layout: of any class
        return f"any/{name}"
    split = split_in(file)
    if split:
        folders = [class_of(file), *folders[2:]]
        name = f"{split} {name}"
    return "/".join([*folders, name])


def assign_folds(dataset, stored, asked, seed):
    """The fold of each of `every_picture`, int (n,) from 0 on: `asked` of them, or as many as the
    smallest class has pictures or objects, which is said. What belongs together, copies and the
    views of one object, stays together. BadInput where there would be fewer than three."""
    # what belongs together
    rows = every_picture(dataset, stored)
    digests = dict(zip(rows.files, rows.digests))
    names = {file: name_in_class(file) for file in digests}
    group_of = group_files(names, find_copies(digests))
    groups = [group_of[file] for file in rows.files]

    # as many folds as there can be
    of_classes = contingency_matrix(rows.labels, groups, sparse=True).getnnz(axis=1)
    count = min(asked, of_classes.min())
    if count < asked:
        smallest = dataset.labels[of_classes.argmin()]
        few = f"the class {smallest!r} has {count} pictures or objects (folders below it, copies)"
        if count < FEWEST_FOLDS:
            raise BadInput(f"--folds needs {FEWEST_FOLDS} and {few}; add some, or move it away.")
        print(f"{count} folds, not {asked}: {few}.")

    folds = np.zeros_like(rows.labels)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, left_out) in enumerate(splitter.split(groups, rows.labels, groups)):
        folds[left_out] = fold
    return folds


def choose(pipeline, settings, x, y, folds, left_out=-1):
    """Without a fold, or with all of them, the best of `settings` for a linear classifier, by its
    accuracy on one fold, and the factor of its softmax with which the answers for all folds are
    most probable, each by classifiers that have seen neither that fold nor the one left out.

    x, y, folds: features (n, n_features), labels and folds (n,). Returns (index of the setting,
    factor, scores (n, n_classes) or of two classes (n,), of the fold left out too); `pipeline` has
    that setting then.
    """
    splits = [
        (np.flatnonzero((folds != fold) & (folds != left_out)), np.flatnonzero(folds == fold))
        for fold in range(folds.max() + 1)
    ]
    first = int(left_out == 0)
    grid = {"ridgeclassifier__alpha": [setting["alpha"] for setting in settings]}
    search = GridSearchCV(pipeline, grid, cv=[splits[first]], refit=False).fit(x, y)
    pipeline.set_params(**search.best_params_)
    scores = cross_val_predict(pipeline, x, y, cv=splits, method="decision_function")
    here = folds != left_out
    return search.best_index_, find_factor(scores[here], y[here]), scores


def cross_validate(pipeline, settings, x, y, folds):
    """Probabilities float32 (n, n_classes), of each picture by a classifier that has not seen its
    fold, nor has what was chosen for it. What it takes: as `choose`."""
    answers = np.zeros((len(y), y.max() + 1), "float32")
    for fold in progress(range(folds.max() + 1), "cross-validation", unit=" folds"):
        here = folds == fold
        if "alpha" in settings[0]:
            _, factor, scores = choose(pipeline, settings, x, y, folds, fold)
            answers[here] = to_probabilities(scores[here], factor)
        else:
            use_one_thread(pipeline.fit(x[~here], y[~here]))
            answers[here] = pipeline.predict_proba(x[here])
    return answers


def fit_best(pipeline, settings, x, y, folds):
    """(Pipeline fitted on all pictures, its setting), as `choose` takes and chooses it. The scaler
    of a linear classifier, where it comes first, changes `x` in place."""
    if "alpha" not in settings[0]:
        return use_one_thread(pipeline.fit(x, y)), settings[0]
    best, factor, _ = choose(pipeline, settings, x, y, folds)
    return with_softmax(pipeline.fit(x, y), factor), settings[best]


def fit_folds(plan, dataset, stored, folds, run, seed):
    """Cross-validate over all pictures, write RUN/folds, then fit on all of them; returns the row
    of metrics of that classifier in a list.

    plan: as of `classifiers.fit_all`, where only penalties differ. stored: {split: as
    `features.load_features` gives it}; left empty, as it would take as much memory again. folds: as
    `assign_folds` gives it.
    """
    layers, discretized, setting = plan[0]
    settings = [setting for *_, setting in reversed(plan)]  # of equals the more regularised
    pipeline = new_pipeline(setting, discretized, seed)
    rows = every_picture(dataset, stored)
    x = np.concatenate([features for features, *_ in stored.values()])
    stored.clear()

    # what learns nothing comes first, once
    fixed = []
    if "alpha" in setting:
        fixed = [pipeline[0]]
        x = pipeline[0].transform(x)
        pipeline = pipeline[1:]

    # how good it is
    probabilities = cross_validate(pipeline, settings, x, rows.labels, folds)
    figures = figures_of_test(dataset.labels, rows, probabilities)
    count = int(folds.max()) + 1
    write_folds(run, dataset, rows, probabilities, {"folds": count, **figures})

    # what is kept
    print(f"\nFitting on all {len(x)} pictures", flush=True)
    fitted, setting = fit_best(pipeline, settings, x, rows.labels, folds)
    trained = fitted[-1] if fixed else fitted  # x is standardised by now
    write_atomically(run / "pipeline.skops", skops.io.dumps(make_pipeline(*fixed, *fitted)))
    row = {
        "layers": layers,
        "discretize": discretized,
        **setting,
        "n_features": x.shape[1],
        "accuracy": trained.score(x, rows.labels),
        "val_accuracy": figures["accuracy"],
        "folds": count,
    }
    return [row]


def write_folds(run, dataset, rows, probabilities, figures):
    """Write RUN/folds and print what is in it. rows: a data.Split. probabilities: (n, n_classes).
    figures: for its metrics.json."""
    folder = run / "folds"
    folder.mkdir(exist_ok=True)
    write_report(folder, run.name, dataset, rows, probabilities, figures)
    write_unseen(run, rows, probabilities)
    print_report(figures, dataset)

    suspects = find_suspects(dataset, rows, probabilities)
    if suspects:
        write_csv(folder / "suspects.csv", suspects)
        shown = [
            (
                dataset.image_folder / row["file"],
                row["class"],
                row["answer"],
                row["probability_of_answer"],
            )
            for row in suspects[:GALLERY_SIZE]
        ]
        title = f"{run.name}: the {len(shown)} most suspect labels"
        plot_gallery(folder / "suspects.png", shown, title, dataset.notice)
        print(f"\nLabels that may be wrong: {folder}/suspects.csv, the first in suspects.png")


def find_suspects(dataset, rows, probabilities):
    """The rows of suspects.csv: the pictures that are taken for another class than theirs, the one
    whose own class is least likely first ('self-confidence', Northcutt et al. 2021, 'Confident
    learning'). rows: a data.Split. probabilities: (n, n_classes), of classifiers that have not seen
    the picture."""
    suspects = []
    certain = probabilities.astype(float).round(6).tolist()
    for file, label, row in zip(rows.files, rows.labels, certain):
        confidence = max(row)
        answer = row.index(confidence)
        if answer != label:
            suspects.append(
                {
                    "file": file,
                    "class": dataset.labels[label],
                    "answer": dataset.labels[answer],
                    "probability_of_class": row[label],
                    "probability_of_answer": confidence,
                    "dataset": dataset.name,
                }
            )
    return sorted(suspects, key=itemgetter("probability_of_class"))
