"""A run's answers for any pictures: probabilities and rankings, as a table, CSV and JSON lines."""

import hashlib
import json
from pathlib import Path

import numpy as np

from common import feature_extractor
from transfer import features
from transfer.classifiers import load_pipeline
from transfer.console import BadInput, percent, print_next, print_notice, print_table, progress
from transfer.digests import file_stamp
from transfer.explain import explain_pictures
from transfer.files import (
    ArrayFile,
    build_or_load_array,
    locked,
    printable,
    read_json,
    write_atomically,
    write_csv,
    write_json,
)
from transfer.flags import refuse_inside
from transfer.folders import walk_pictures
from transfer.images import decode_all, load_images
from transfer.runs import dataset_of, numbered_names
from transfer.stats import fewest_answers, highest_promise, promised_confidence
from transfer.weights import load_model, weights_digest

TOP_K = 5  # classes of each answer in the files
SHOWN = 3  # classes of each answer on screen
MAX_ROWS = 20  # rows of the table on screen
UNSURE = "unsure"  # the answer of less confidence than --accept asks for


def predict_pictures(args, run, dataset=None):
    """--predict: say what the pictures are, on screen and in a folder; with --explain draw why.
    args: test_model.py's. dataset: the Dataset that --data names. BadInput where there are no
    pictures, or none can be read."""
    # what is asked of which run, and where the answers go
    refuse_inside(args.out, args.predict)
    files = list_pictures(args.predict)
    trained = run.metrics
    print_notice(trained["notice"])
    judged_by = "folds'" if run.folds else "val"
    print(
        f"{run.folder}, trained on {trained['dataset']} ({judged_by} accuracy "
        f"{percent(trained['val_accuracy'])}), classifies {len(files)} pictures:\n",
        flush=True,
    )
    out = new_folder(args.out, run)

    # the answers
    classify = load_classifier(run)
    batch_size = args.batch_size or run.config["arguments"]["batch_size"]
    options = features.ExtractionOptions(batch_size, args.cache, args.skip_unreadable)
    threshold = acceptance_threshold(args.accept, run, options, dataset)
    with locked(out):
        out.mkdir(exist_ok=True)
        kept = out if args.cache == "none" else args.cache
        rankings, unread = predict_files(files, classify, run, batch_size, kept)
        print_predictions(write_predictions(out, run, rankings, unread, threshold))
        if args.explain:
            explain_pictures(out, run, rankings, trained["notice"])

    print_notice(trained["notice"])
    if not rankings:
        raise BadInput(f"None of the {len(files)} pictures could be read (see above).")
    print(f"Results: {out}/ (predictions.csv, predictions.jsonl)")
    if not args.explain:
        print_next("test_model.py", run=run.folder, predict=args.predict[0], explain=True)


def list_pictures(paths):
    """The files that `paths` (files and folders) name, folders with all that is below them."""
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            files += [path / file for file in walk_pictures(path)]
        else:
            files.append(path)
    if not files:
        raise BadInput(f"There is no picture in {', '.join(paths)}; name files or their folder.")
    return list(dict.fromkeys(files))


def new_folder(named, run):
    """The folder `named`, else RUN/predicted, predicted-2 ...: the first without predictions."""
    for place in numbered_names(run.folder / "predicted", named):
        if not (place / "predictions.jsonl").exists():
            return place
    raise BadInput(f"{named} holds predictions already; name a new folder with --out.")


def load_classifier(run):
    """A run's function from uint8 images (b, size, size, 3) to probabilities float32 (b, n).
    BadInput where the network has changed that its pipeline was fitted on."""
    if run.is_network:
        model = load_model(run.folder)
        return lambda images: np.array(model.predict_on_batch(images), "float32")

    # a pipeline, and the network whose features it takes
    pipeline = load_pipeline(run.folder / "pipeline.skops")
    stored = run.config["features"]
    columns = stored["layers"]
    names = list(columns)
    model = features.build_network(features.spec_of(stored))
    refuse_changed(run, weights_digest(model, names))
    extractor, _ = feature_extractor(model, names)

    def classify(images):
        x = np.asarray(extractor.predict_on_batch(images), "float32")
        x = features.select_columns(x, columns, run.metrics["layers"])
        return pipeline.predict_proba(x).astype("float32")

    return classify


def refuse_changed(run, digest):
    """BadInput where the weights with this digest are not those that the pipeline was fitted on."""
    stored = run.config["features"]
    if digest != stored["weights_sha256"]:
        raise BadInput(
            f"{stored['weights']} has changed since {run.folder} was fitted; fit it again."
        )


def predict_split(dataset, run, split, options):
    """A run's answers for the split of that name: (its rows that could be read, as a data.Split,
    probabilities (n, n_classes)). options: an ExtractionOptions. The features of a pipeline are
    extracted first; BadInput where its network has changed."""
    if run.is_network:
        classify = load_classifier(run)
        settings = (run.image_size, options.cache, options.skip_unreadable)
        rows = load_images(dataset, (split,), *settings).splits[split]
        size = options.batch_size
        starts = progress(range(0, len(rows.files), size), f"predicting {split}")
        return rows, np.concatenate(
            [classify(rows.images[start : start + size]) for start in starts]
        )

    # what is stored of the features is found by all that decides them
    spec = features.spec_of(run.config["features"])
    folder = features.extract_features(spec, dataset, (split,), options)
    refuse_changed(run, read_json(folder / "features.json")["weights_sha256"])
    x, _, files = features.load_features(folder, dataset, split, run.metrics["layers"])
    pipeline = load_pipeline(run.folder / "pipeline.skops")
    rows = dataset.splits[split]
    rows = rows.take(np.isin(rows.files, files))
    return rows, pipeline.predict_proba(x).astype("float32")


def write_unseen(folder, rows, probabilities):
    """Write RUN/unseen.json: how sure and how right the answers are for pictures that were not
    trained on. folder: RUN. rows: a data.Split. probabilities: (n, n_classes)."""
    confidence = probabilities.max(axis=1).tolist()
    right = (probabilities.argmax(axis=1) == rows.labels).tolist()
    write_json(folder / "unseen.json", {"confidence": confidence, "right": right})


def read_unseen(run):
    """What `write_unseen` wrote of a Run: confidence (n,), right (n,) bool."""
    found = read_json(run.folder / "unseen.json")
    return np.array(found["confidence"]), np.array(found["right"])


def acceptance_threshold(accept, run, options, dataset=None):
    """The confidence from which on --accept takes the answers of a run, as `promised_confidence`
    has it by its folds, else by its validation split; infinite where none suffices. Says which.
    None without --accept. dataset: the Dataset that --data names, perhaps the run's, moved."""
    if accept is None:
        return None
    if not (run.folder / "unseen.json").exists():
        trained_on = dataset_of(run, cache=options.cache, moved=dataset)
        write_unseen(run.folder, *predict_split(trained_on, run, "val", options))

    confidence, right = read_unseen(run)
    threshold = promised_confidence(confidence, right, accept)
    judged_by = "folds" if run.folds else "validation split"
    if threshold < np.inf:
        print(
            f"--accept {accept:g}: answers from a confidence of {percent(threshold)} on. With 90% "
            f"certainty, by the {len(right)} pictures of its {judged_by}, at least that share of "
            "them is right, for new pictures of the same kinds, in about the same shares."
        )
    else:
        count = fewest_answers(accept)
        surest = right[np.argsort(-confidence)[:count]]
        print(
            f"--accept {accept:g} cannot be promised: it takes {count} right answers, the surest "
            f"ones, and {surest.sum()} of the {len(surest)} surest on its {judged_by} are right. "
            f"Every answer is '{UNSURE}'; the most that can be promised is "
            f"{highest_promise(confidence, right):g}."
        )
    return threshold


def predict_files(files, classify, run, batch_size, folder):
    """({file: its ranking}, {file that cannot be read: why}). What is done is kept in `folder`, so
    that an interrupted command resumes; files that it could not read are tried again."""
    labels = run.config["labels"]

    def blocks(starts):
        for start in starts:
            images, bad = decode_all(files[start : start + batch_size], run.image_size)
            block = classify(images)
            block[list(bad)] = np.nan
            yield block

    # the run, and the size and time of each file, tell whether an array found there is of use
    stamps = [(str(file), *file_stamp(file)) for file in files]
    key = f"{run.folder.absolute()} {file_stamp(run.folder / 'metrics.json')} {stamps}"
    digest = hashlib.sha256(printable(key).encode()).hexdigest()[:16]
    path = Path(folder) / f"predicted-{digest}.npy"
    file = ArrayFile(path, (len(files), len(labels)), "float32", "predicting")
    probabilities = np.array(build_or_load_array(file, blocks, batch_size))

    # what could not be read, perhaps by an earlier command: rights may have changed since
    unread = {}
    for row in np.flatnonzero(np.isnan(probabilities[:, 0])):
        images, bad = decode_all([files[row]], run.image_size)
        if bad:
            unread[files[row]] = bad[0]
        else:
            probabilities[row] = classify(images)[0]

    rankings = {
        file: ranking(row, labels) for file, row in zip(files, probabilities) if file not in unread
    }
    return rankings, unread


def ranking(probabilities, labels):
    """[(class name, probability)] of the TOP_K classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_K]
    return [(labels[index], float(probabilities[index])) for index in order]


def ranking_row(ranked):
    """A ranking as columns of a CSV file."""
    row = {}
    for rank, (label, probability) in enumerate(ranked, 1):
        row[f"predicted_{rank}"] = label
        row[f"probability_{rank}"] = f"{probability:.6f}"
    return row


def write_predictions(out, run, rankings, unread, threshold):
    """Write predictions.csv and predictions.jsonl into the folder `out`, one row or line a file;
    the unread are in the .jsonl alone, after all others. Returns what is shown of each: (name,
    answer, likeliest classes or why it could not be read). rankings, unread: as `predict_files`
    gives. threshold: the least confidence of an answer that is given; None where all are."""
    origin = {"run": str(run.folder), "dataset": run.metrics["dataset"]}
    lines = []
    rows = []
    shown = []
    for file, ranked in rankings.items():
        answer, probability = ranked[0]
        if probability < (threshold or 0):
            answer = UNSURE
        known = {"file": str(file), "answer": answer}
        classes = [{"class": label, "probability": round(p, 6)} for label, p in ranked]
        lines.append({**known, "predictions": classes, **origin})
        rows.append({**known, **ranking_row(ranked), **origin})
        likeliest = ", ".join(f"{label} {p:.1%}" for label, p in ranked[:SHOWN])
        shown.append((printable(file.name), answer, likeliest))
    for file, reason in unread.items():
        lines.append({"file": str(file), "error": reason, **origin})
        shown.append((printable(file.name), "-", reason))

    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(out / "predictions.jsonl", content)
    if rows:
        write_csv(out / "predictions.csv", rows)
    return shown


def print_predictions(shown):
    """The first MAX_ROWS rows of what `write_predictions` returns as a table."""
    print_table(("picture", "answer", "likeliest classes"), shown[:MAX_ROWS])
    if len(shown) > MAX_ROWS:
        print("  ... predictions.jsonl has them all")
