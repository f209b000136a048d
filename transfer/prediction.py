"""What a run says of any pictures, and why: probabilities, Grad-CAM, the importance of layers."""

import json
import shutil
from pathlib import Path

import numpy as np

from common import convolutions, import_keras, pooled_model, reads_every_layer, select_layers
from transfer.classifiers import load_pipeline, pipeline_probabilities
from transfer.features import Source, build_network, take_layers
from transfer.files import write_atomically, write_csv
from transfer.folders import walk_pictures
from transfer.images import decode_all
from transfer.screen import BadInput, print_table, progress
from transfer.weights import load_model, weights_digest, with_precision

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


def load_classifier(run, flips=False):
    """The classifier of a finished run: a function from uint8 images (b, size, size, 3) to probabilities
    float32 (b, classes), and its network.

    flips: the mean of what a network says of each image and of its mirror image.
    """
    import_keras()
    from transfer.inputs import on_images

    if run.is_network:
        model = load_model(run.folder)
        network = on_images(model)

        def classify(images):
            views = (images, images[:, :, ::-1]) if flips else (images,)
            return np.mean([np.asarray(network.predict_on_batch(v), "float32") for v in views], axis=0)

        return classify, model
    pipeline, stored = load_pipeline(run.folder / "pipeline.skops"), run.config["features"]
    columns, classes = stored["layers"], len(run.config["labels"])
    model = with_precision(build_network(source_of(stored)), stored["precision"])
    if weights_digest(model, list(columns)) != stored["weights_sha256"]:
        raise BadInput(
            f"The network {stored['model']} has changed since {run.folder} was fitted; fit it anew."
        )
    pooled = on_images(pooled_model(model, list(columns))[0])

    def classify_features(images):
        features = np.asarray(pooled.predict_on_batch(images), "float32")
        features = take_layers(features, columns, run.metrics["layers"])
        return pipeline_probabilities(pipeline, features, classes)

    return classify_features, model


def source_of(notes):
    """The features.Source that features.json, or a run's record of it, tells of."""
    settings = {key: notes[key] for key in ("model", "image_size", "seed", "precision")}
    return Source(layers=",".join(notes["layers"]), **settings)


def predict_files(files, classify, image_size, batch_size):
    """Yields (files, images uint8 (b, size, size, 3), probabilities (b, classes), {file: why it cannot be
    read}) batch by batch."""
    for start in progress(range(0, len(files), batch_size), "predicting"):
        batch = files[start : start + batch_size]
        images = np.zeros((len(batch), image_size, image_size, 3), "uint8")
        bad = decode_all(batch, image_size, images)
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
    """The first SHOWN rankings as a table that fits the terminal, and the files that could not be read."""
    rows = []
    for file, ranked in list(rankings.items())[:SHOWN]:
        name = file.name if len(file.name) <= NAME else f"...{file.name[3 - NAME :]}"
        rows.append((name, *(f"{label} {100 * probability:.1f}%" for label, probability in ranked)))
    if rows:
        widths = np.cumsum([2 + max(map(len, column)) for column in zip(*rows)])
        fitting = max(2, int(np.sum(widths < shutil.get_terminal_size((96, 24)).columns)))
        rows = [row[:fitting] for row in rows]
        print_table(("picture", *(str(rank) for rank in range(1, fitting))), rows)
    if len(rankings) > SHOWN:
        print(f"  ... and {len(rankings) - SHOWN} more in predictions.csv")
    if unreadable:
        print(f"\n{len(unreadable)} files could not be read and were left out:")
        for file, reason in list(unreadable.items())[:SHOWN]:
            print(f"  {file}: {reason}")
        if len(unreadable) > SHOWN:
            print(f"  ... and {len(unreadable) - SHOWN} more in predictions.jsonl")


# Why -------------------------------------------------------------------------------------


def gradient(function, x):
    """Gradient of the scalar function(x) at the array x, on whichever backend Keras runs."""
    import keras

    backend = keras.backend.backend()
    x = keras.ops.convert_to_tensor(x)
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    if backend == "torch":
        import torch

        x = x.detach().requires_grad_()
        return keras.ops.convert_to_numpy(torch.autograd.grad(function(x), x)[0])
    import tensorflow

    with tensorflow.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return np.asarray(tape.gradient(y, x))


def grad_cam(model, images):
    """Where the last convolution speaks for the class that each image is taken for.

    Grad-CAM (Selvaraju et al. 2017): the activations of the last convolution, each channel weighted by
    the mean gradient of the class's score before the softmax, summed, negative parts cut off.
    images: uint8 (b, size, size, 3). Returns float32 (b, h, w), each map scaled to a maximum of 1 (0
    everywhere where nothing speaks for the class).
    """
    import keras

    from transfer.inputs import on_images

    *earlier, last = convolutions(model)
    tensors = [model.get_layer(last).output]
    if reads_every_layer(model):
        tensors += [model.get_layer(f"{name}_mean").output for name in earlier]
    outputs = on_images(keras.Model(model.input, [*tensors, model.output])).predict_on_batch(images)
    activations, *means, probabilities = (np.asarray(output, "float32") for output in outputs)
    means = [keras.ops.convert_to_tensor(mean) for mean in means]
    upper = keras.Model(tensors, model.output)
    chosen = keras.ops.one_hot(probabilities.argmax(axis=1), model.output_shape[-1])
    softmax = model.get_layer("predictions")
    before, softmax.activation = softmax.activation, keras.activations.linear
    try:
        slopes = gradient(lambda a: keras.ops.sum(upper([a, *means], training=False) * chosen), activations)
    finally:
        softmax.activation = before
    weights = slopes.astype("float32").mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((weights * activations).sum(axis=-1), 0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def layer_importance(pipeline, columns, layers):
    """({layer: share of the importance}, {layer: share of the features}) of a fitted pipeline.

    A forest's importance of a layer is the sum of its features' (mean decrease of impurity); a linear
    classifier's is the sum of its features' absolute weights, which act on standardised features.
    """
    classifier, names = pipeline[-1], select_layers(list(columns), layers)
    if hasattr(classifier, "feature_importances_"):
        weights = classifier.feature_importances_
    else:
        weights = np.abs(classifier.coef_).sum(axis=0)
    widths = [columns[name][1] - columns[name][0] for name in names]
    sums = [part.sum() for part in np.split(weights, np.cumsum(widths)[:-1])]
    total = max(sum(sums), 1e-12)
    importance = {name: float(value / total) for name, value in zip(names, sums)}
    return importance, {name: width / sum(widths) for name, width in zip(names, widths)}
