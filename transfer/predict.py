"""A run's answers for any pictures: probabilities and rankings, as a table, CSV and JSON lines."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from common import feature_extractor
from transfer import features
from transfer.classifiers import load_pipeline, pipeline_probabilities
from transfer.console import BadInput, print_table, progress
from transfer.files import (
    ArrayFile,
    build_or_load_array,
    printable,
    read_json,
    write_atomically,
    write_csv,
    write_json,
)
from transfer.folders import file_stamp, walk_pictures
from transfer.images import decode_all, load_images
from transfer.runs import dataset_of
from transfer.weights import load_model, weights_digest

TOP_K = 5
MAX_ROWS = 20  # rows of the table on screen
MAX_NAME = 40  # letters of a file's name on screen
UNSURE = "unsure"  # the answer of less confidence than --accept asks for


def list_pictures(paths):
    """The files that `paths` (files and folders) name, folders with all that is below them."""
    files = []
    for path in map(Path, paths):
        files += walk_pictures(path) if path.is_dir() else [path]
    if not files:
        raise BadInput(
            f"There is no picture in {', '.join(map(str, paths))}; name files or their folder."
        )
    return list(dict.fromkeys(files))


def load_classifier(run):
    """A run's function from uint8 images (b, size, size, 3) to probabilities (b, classes), its network."""
    if run.is_network:
        model = load_model(run.folder)
        return lambda images: np.asarray(model.predict_on_batch(images), "float32"), model
    pipeline, stored = load_pipeline(run.folder / "pipeline.skops"), run.config["features"]
    columns, classes = stored["layers"], len(run.config["labels"])
    model = features.build_network(features.spec_of(stored))
    if weights_digest(model, list(columns)) != stored["weights_sha256"]:
        raise BadInput(
            f"{stored['weights']} has changed since {run.folder} was fitted; fit it again."
        )
    pooled, _ = feature_extractor(model, list(columns))

    def classify(images):
        x = np.asarray(pooled.predict_on_batch(images), "float32")
        x = features.select_columns(x, columns, run.metrics["layers"])
        return pipeline_probabilities(pipeline, x, classes)

    return classify, model


def predict_split(dataset, run, split, settings, classify=None):
    """{file: probabilities (n_classes,)} of a run for the split of that name. settings: an ExtractionOptions.
    classify: a network's `load_classifier`; the features of a pipeline are extracted first."""
    if run.is_network:
        given = run.image_size, settings.cache, settings.skip_unreadable
        rows, predictions = load_images(dataset, (split,), *given).splits[split], {}
        for start in progress(
            range(0, len(rows.files), settings.batch_size), f"predicting {split}"
        ):
            part = slice(start, start + settings.batch_size)
            predictions |= zip(rows.files[part].tolist(), classify(rows.images[part]))
        return predictions
    stored, pipeline = run.config["features"], load_pipeline(run.folder / "pipeline.skops")
    source, folder = features.spec_of(stored), Path(stored["folder"])
    if stored["dataset"]["content_key"] != dataset.content_key:  # some were added, say
        folder = features.features_folder(source, dataset, settings.skip_unreadable)
    features.extract_features(source, dataset, (split,), folder, settings)
    if read_json(folder / "features.json")["weights_sha256"] != stored["weights_sha256"]:
        raise BadInput(
            f"{run.folder} was fitted on other features than those in {folder}; fit it again."
        )
    x, _, files = features.load_features(folder, dataset, split, run.metrics["layers"])
    return dict(zip(files.tolist(), pipeline_probabilities(pipeline, x, len(dataset.labels))))


def acceptance_threshold(accept, run, settings, classify=None):
    """The confidence from which on --accept takes the answers of a run, by those for the validation split,
    which are kept in RUN/validation.json. None without --accept."""
    path = run.folder / "validation.json"
    if accept and not path.exists():
        dataset = dataset_of(run)
        found, split = predict_split(dataset, run, "val", settings, classify), dataset.splits["val"]
        labels = dict(zip(split.files.tolist(), split.labels.tolist()))
        right = [bool(p.argmax() == labels[file]) for file, p in found.items()]
        write_json(path, {"confidence": [float(p.max()) for p in found.values()], "right": right})
    return confidence_threshold(*read_json(path).values(), accept) if accept else None


def predict_files(files, classify, run, batch_size, folder):
    """({file: its ranking}, {file that cannot be read: why}). What is done is kept in `folder`, so that an
    interrupted command resumes."""
    labels, stamps = run.config["labels"], [(str(file), *file_stamp(file)) for file in files]
    key = f"{run.folder.absolute()} {file_stamp(run.folder / 'metrics.json')} {stamps}"
    path = (
        Path(folder) / f"predicted-{hashlib.sha256(printable(key).encode()).hexdigest()[:16]}.npy"
    )

    def blocks(starts):
        for start in starts:
            images, bad = decode_all(files[start : start + batch_size], run.image_size)
            good = np.delete(np.arange(len(images)), list(bad))
            block = np.full((len(images), len(labels)), np.nan, "float32")
            block[good] = classify(images[good]) if len(good) else 0
            yield block

    file = ArrayFile(path, (len(files), len(labels)), "float32", "predicting")
    probabilities = np.array(build_or_load_array(file, blocks, batch_size))
    rows = np.flatnonzero(np.isnan(probabilities[:, 0]))
    images, why = decode_all(
        [files[row] for row in rows], run.image_size
    )  # again: rights may have changed
    good = np.delete(np.arange(len(rows)), list(why))
    probabilities[rows[good]] = classify(images[good]) if len(good) else 0
    unread = {files[rows[number]]: reason for number, reason in why.items()}
    return {f: ranking(p, labels) for f, p in zip(files, probabilities) if f not in unread}, unread


def confidence_threshold(confidence, right, wanted):
    """The lowest confidence such that of the answers with it or more a share `wanted` was right; infinite
    where there is none. confidence: n floats. right: n bools."""
    confidence, right = np.array(confidence), np.array(right)
    order = np.argsort(-confidence, kind="stable")
    shares, confidence = np.cumsum(right[order]) / np.arange(1, len(right) + 1), confidence[order]
    of_equals_last = np.append(np.diff(confidence) != 0, True)
    enough = np.flatnonzero((shares >= wanted) & of_equals_last)
    return float(confidence[enough[-1]]) if len(enough) else np.inf


def answers_of(rankings, threshold):
    """{file: its likeliest class, UNSURE where that is below `threshold`}; {} where that is None."""
    if threshold is None:
        return {}
    return {file: r[0][0] if r[0][1] >= threshold else UNSURE for file, r in rankings.items()}


def ranking(probabilities, labels):
    """[(class name, probability)] of the TOP_K classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP_K]
    return [(labels[index], float(probabilities[index])) for index in order]


def ranking_row(ranked):
    """A ranking as columns of a CSV file."""
    row = {}
    for rank, (label, probability) in enumerate(ranked, 1):
        row |= {f"predicted_{rank}": label, f"probability_{rank}": f"{probability:.6f}"}
    return row


def write_predictions(out, run, rankings, unread, answers):
    """Write predictions.csv and predictions.jsonl into the folder `out`, one row or line a file. rankings,
    unread: as `predict_files` gives; the unread are in the .jsonl alone. answers: {file: answer} or {}."""
    origin = {"run": str(run.folder), "dataset": run.config["dataset"]["name"]}
    lines, rows = [], []
    for file, ranked in rankings.items():
        known = {"file": str(file)} | ({"answer": answers[file]} if answers else {})
        classes = [{"class": label, "probability": round(p, 6)} for label, p in ranked]
        lines.append({**known, "predictions": classes, **origin})
        rows.append({**known, **ranking_row(ranked), **origin})
    lines += [{"file": str(file), "error": reason, **origin} for file, reason in unread.items()]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(out / "predictions.jsonl", content)
    if rows:
        write_csv(out / "predictions.csv", rows)


def print_predictions(rankings, unread, answers):
    """The first MAX_ROWS rankings as a table that fits the terminal, and the files that could not be read."""
    rows, answer = [], ["answer"] * bool(answers)
    for file, ranked in list(rankings.items())[:MAX_ROWS]:
        name = printable(file.name)
        name = name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"
        rows.append(
            (name, *[answers[file] for _ in answer], *(f"{label} {p:.1%}" for label, p in ranked))
        )
    if rows:
        widths = np.cumsum([2 + max(map(len, column)) for column in zip(*rows)])
        fitting = max(2, int(np.sum(widths < shutil.get_terminal_size((96, 24)).columns)))
        print_table(
            ("picture", *answer, *range(1, TOP_K + 1))[:fitting], [row[:fitting] for row in rows]
        )
    lines = [f"  {file}: {reason}" for file, reason in unread.items()]
    if len(rankings) > MAX_ROWS:
        print(f"  ... and {len(rankings) - MAX_ROWS} more in predictions.csv")
    if lines:
        print(
            f"\n{len(lines)} files could not be read and were left out:",
            *lines[:MAX_ROWS],
            sep="\n",
        )
    if len(lines) > MAX_ROWS:
        print(f"  ... and {len(lines) - MAX_ROWS} more in predictions.jsonl")
