"""What a run says of any pictures: classes with their probabilities, for networks and pipelines."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np

from common import import_keras, pooled_model, probabilities_of
from dataset import decode_all, decode_image
from features import feature_source, load_pipeline, pipeline_probabilities, take_layers
from files import BadInput, progress, read_json, write_atomically, write_csv
from folders import walk_pictures
from record import print_table
from weights import load_model, weights_digest, with_precision

TOP = 5
SHOWN = 20  # rows of the table on screen


def list_pictures(paths):
    """The files that `paths` (files and folders) name, folders with all that is below them."""
    files = []
    for path in map(Path, paths):
        files += walk_pictures(path) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"There is no picture in {', '.join(map(str, paths))}; name files or their folder.")
    return list(dict.fromkeys(files))


def load_classifier(folder, config, flips=False):
    """The classifier of a finished run: a function from uint8 images (b, size, size, 3) to probabilities
    float32 (b, classes), and its network."""
    keras = import_keras()
    preprocess = keras.applications.vgg16.preprocess_input
    if not (folder / "pipeline.skops").exists():
        model = load_model(folder)
        return lambda images: probabilities_of(model, preprocess(images.astype("float32")), flips), model
    pipeline, stored = load_pipeline(folder / "pipeline.skops"), config["features"]
    columns, layers = stored["layers"], read_json(folder / "metrics.json")["layers"]
    source = Namespace(**{key: stored[key] for key in ("model", "image_size", "seed")})
    model = with_precision(feature_source(source, ",".join(columns)), stored["precision"])
    if weights_digest(model, list(columns)) != stored["weights_sha256"]:
        raise BadInput(f"The network {stored['model']} has changed since {folder} was fitted; fit it anew.")
    pooled, _ = pooled_model(model, list(columns))

    def classify(images):
        features = np.asarray(pooled.predict_on_batch(preprocess(images.astype("float32"))), "float32")
        features = take_layers(features, columns, layers)
        return pipeline_probabilities(pipeline, features, len(config["labels"]))

    return classify, model


def predict_files(files, classify, image_size, batch_size):
    """Yields (files, images uint8 (b, size, size, 3), probabilities (b, classes), {file: why it cannot be
    read}) batch by batch."""
    for start in progress(range(0, len(files), batch_size), "predicting"):
        batch = files[start : start + batch_size]
        images = np.zeros((len(batch), image_size, image_size, 3), "uint8")
        bad = decode_all(batch, image_size, images)
        good = np.delete(np.arange(len(batch)), bad)
        probabilities = classify(images[good]) if len(good) else np.zeros((0, 0))
        reasons = {batch[row]: why_unreadable(batch[row], image_size) for row in bad}
        yield [batch[row] for row in good], images[good], probabilities, reasons


def why_unreadable(path, image_size):
    """What decoding a file ends with, in one line."""
    from PIL import UnidentifiedImageError

    if not path.exists():
        return "there is no such file"
    try:
        decode_image(path, image_size)
    except UnidentifiedImageError:
        return "it is not a picture, or of a kind that cannot be read"
    except Exception as error:  # whatever Pillow makes of a broken file
        return " ".join(str(error).replace(str(path), "").split()) or type(error).__name__
    return "it could be read only at the second attempt"


def ranking(probabilities, labels):
    """[(class name, probability)] of the TOP classes, the likeliest first."""
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(labels[index], float(probabilities[index])) for index in order]


def ranking_row(ranked):
    """A ranking as columns of a CSV file."""
    row = {}
    for rank, (label, probability) in enumerate(ranked, 1):
        row[f"predicted_{rank}"] = label
        row[f"probability_{rank}"] = f"{probability:.6f}"
    return row


def write_predictions(out, run, dataset_name, rankings, unreadable):
    """Write predictions.csv and predictions.jsonl into the folder `out`, one row or line a file.

    rankings: {file: ranking}. unreadable: {file: reason}; those are lines of the .jsonl alone.
    """
    about = {"run": str(run), "dataset": dataset_name}
    lines = []
    for file, ranked in rankings.items():
        found = [{"class": label, "probability": round(p, 6)} for label, p in ranked]
        lines.append({"file": str(file), "predictions": found, **about})
    lines += [{"file": str(file), "error": reason, **about} for file, reason in unreadable.items()]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomically(out / "predictions.jsonl", content)
    if rankings:
        rows = [{"file": file, **ranking_row(ranked), **about} for file, ranked in rankings.items()]
        write_csv(out / "predictions.csv", rows)


def print_predictions(rankings, unreadable):
    """The first SHOWN rankings as a table, and the files that could not be read."""
    rows = []
    for file, ranked in list(rankings.items())[:SHOWN]:
        rows.append((file, *(f"{label} {100 * probability:.1f}%" for label, probability in ranked)))
    if rows:
        print_table(("picture", *(str(rank) for rank in range(1, len(rows[0])))), rows)
    if len(rankings) > SHOWN:
        print(f"  ... and {len(rankings) - SHOWN} more in predictions.csv")
    if unreadable:
        print(f"\n{len(unreadable)} files could not be read and were left out:")
        for file, reason in list(unreadable.items())[:SHOWN]:
            print(f"  {file}: {reason}")
        if len(unreadable) > SHOWN:
            print(f"  ... and {len(unreadable) - SHOWN} more in predictions.jsonl")
