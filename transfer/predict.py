"""A run's answers for any pictures: probabilities and rankings, as a table, CSV and JSON lines."""

import json
import shutil
from pathlib import Path

import numpy as np

from common import pooled_model
from transfer.classifiers import load_pipeline, pipeline_probabilities
from transfer.data import walk_pictures
from transfer.features import build_network, source_of, take_layers
from transfer.images import decode_all
from transfer.network import load_model, weights_digest
from transfer.screen import BadInput, print_table, progress
from transfer.store import write_atomically, write_csv

TOP = 5
SHOWN = 20  # rows of the table on screen
NAME = 40  # letters of a file's name on screen


def list_pictures(paths):
    """The files that `paths` (files and folders) name, folders with all that is below them."""
    files = []
    for path in map(Path, paths):
        files += walk_pictures(path) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"There is no picture in {', '.join(map(str, paths))}; name files or their folder.")
    return list(dict.fromkeys(files))


def load_classifier(run):
    """The classifier of a finished run: a function from uint8 images (b, size, size, 3) to probabilities
    float32 (b, classes), and its network."""
    if run.is_network:
        model = load_model(run.folder)
        return lambda images: np.asarray(model.predict_on_batch(images), "float32"), model
    pipeline, stored = load_pipeline(run.folder / "pipeline.skops"), run.config["features"]
    columns, classes = stored["layers"], len(run.config["labels"])
    model = build_network(source_of(stored))
    if weights_digest(model, list(columns)) != stored["weights_sha256"]:
        raise BadInput(f"{stored['weights']} has changed since {run.folder} was fitted; fit it again.")
    pooled, _ = pooled_model(model, list(columns))

    def classify(images):
        features = np.asarray(pooled.predict_on_batch(images), "float32")
        features = take_layers(features, columns, run.metrics["layers"])
        return pipeline_probabilities(pipeline, features, classes)

    return classify, model


def predict_files(files, classify, image_size, batch_size):
    """Yields by batch (files, images uint8 (b, h, w, 3), probabilities (b, classes), {unreadable: why})."""
    for start in progress(range(0, len(files), batch_size), "predicting"):
        batch = files[start : start + batch_size]
        images, bad = decode_all(batch, image_size)
        good = np.delete(np.arange(len(batch)), list(bad))
        probabilities = classify(images[good]) if len(good) else np.zeros((0, 0))
        reasons = {batch[row]: reason for row, reason in bad.items()}
        yield [batch[row] for row in good], images[good], probabilities, reasons


def ranking(probabilities, labels):
    """[(class name, probability)] of the TOP classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(labels[index], float(probabilities[index])) for index in order]


def ranking_row(ranked):
    """A ranking as columns of a CSV file."""
    row = {}
    for rank, (label, probability) in enumerate(ranked, 1):
        row |= {f"predicted_{rank}": label, f"probability_{rank}": f"{probability:.6f}"}
    return row


def write_predictions(out, run, rankings, unreadable):
    """Write predictions.csv and predictions.jsonl into the folder `out`, one row or line a file. rankings:
    {file: ranking}. unreadable: {file: reason}; those are lines of the .jsonl alone."""
    origin = {"run": str(run.folder), "dataset": run.config["dataset"]["name"]}
    found = {file: [{"class": c, "probability": round(p, 6)} for c, p in r] for file, r in rankings.items()}
    lines = [{"file": str(file), "predictions": classes, **origin} for file, classes in found.items()]
    lines += [{"file": str(file), "error": reason, **origin} for file, reason in unreadable.items()]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(out / "predictions.jsonl", content)
    if rankings:
        rows = [{"file": file, **ranking_row(ranked), **origin} for file, ranked in rankings.items()]
        write_csv(out / "predictions.csv", rows)


def print_predictions(rankings, unreadable):
    """The first SHOWN rankings as a table that fits the terminal, and the files that could not be read."""
    rows = []
    for file, ranked in list(rankings.items())[:SHOWN]:
        name = file.name if len(file.name) <= NAME else f"...{file.name[3 - NAME :]}"
        rows.append((name, *(f"{label} {100 * probability:.1f}%" for label, probability in ranked)))
    if rows:
        widths = np.cumsum([2 + max(map(len, column)) for column in zip(*rows)])
        fitting = max(2, int(np.sum(widths < shutil.get_terminal_size((96, 24)).columns)))
        print_table(("picture", *range(1, fitting)), [row[:fitting] for row in rows])
    if len(rankings) > SHOWN:
        print(f"  ... and {len(rankings) - SHOWN} more in predictions.csv")
    if unreadable:
        print(f"\n{len(unreadable)} files could not be read and were left out:")
    for file, reason in list(unreadable.items())[:SHOWN]:
        print(f"  {file}: {reason}")
    if len(unreadable) > SHOWN:
        print(f"  ... and {len(unreadable) - SHOWN} more in predictions.jsonl")
