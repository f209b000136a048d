"""Why a run says what it says: Grad-CAM, galleries of mistakes, the importance of layers."""

from operator import itemgetter

import numpy as np

from common import convolutions, has_multilayer_head, parse_layers
from transfer import plots
from transfer.backend import keras
from transfer.classifiers import load_pipeline
from transfer.console import percent, print_table, progress
from transfer.files import short_name, write_csv
from transfer.images import decode_all
from transfer.weights import load_model

GRAD_CAM_BATCH = 32  # pictures


def gradient(function, x):
    """Gradient of the scalar function(x) at the array x, on whichever backend Keras runs."""
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
    """Where the last convolution speaks for the class that each image is taken for: Grad-CAM
    (Selvaraju et al. 2017). images: uint8 (b, size, size, 3). Returns heatmaps float32 (b, h, w),
    each scaled to a maximum of 1, or all 0 where nothing speaks for the class."""
    # The network in two: up to its last convolution, and from there to its softmax. The multilayer
    # head reads the means of the earlier convolutions too; those stay as they are.
    *earlier, last = convolutions(model)
    tensors = [model.get_layer(last).output]
    if has_multilayer_head(model):
        tensors += [model.get_layer(f"{name}_mean").output for name in earlier]
    lower = keras.Model(model.input, [*tensors, model.output])
    softmax = model.get_layer("predictions")
    upper = keras.Model(tensors, softmax.input)

    # What the last convolution gives, (b, h, w, channels), and the class each image is taken for.
    outputs = [np.asarray(output, "float32") for output in lower.predict_on_batch(images)]
    last_conv_layer_output, *means, probabilities = outputs
    means = [keras.ops.convert_to_tensor(mean) for mean in means]
    chosen = keras.ops.one_hot(probabilities.argmax(axis=1), probabilities.shape[1])

    # The gradient of that class's score before the softmax, which flattens it where it is certain.
    def score(last_output):
        scores = keras.ops.matmul(upper([last_output, *means], training=False), softmax.kernel)
        return keras.ops.sum(scores * chosen)

    gradients = gradient(score, last_conv_layer_output).astype("float32")

    # How much each channel speaks for the class: its mean gradient, (b, 1, 1, channels).
    pooled_gradients = gradients.mean(axis=(1, 2), keepdims=True)

    # The sum of the channels, so weighted, without what speaks against the class.
    heatmap = np.maximum((pooled_gradients * last_conv_layer_output).sum(axis=-1), 0)
    return heatmap / np.maximum(heatmap.max(axis=(1, 2), keepdims=True), 1e-12)


def layer_importance(pipeline, columns, layers):
    """[(layer, share of the importance, share of the features)] of a fitted pipeline. A layer's
    importance to a forest is the sum of its features' (mean decrease of impurity); to a linear
    classifier it is the sum of their absolute weights, which act on standardised features."""
    classifier = pipeline[-1]
    if hasattr(classifier, "coef_"):
        weights = np.abs(classifier.coef_).sum(axis=0)
    else:
        weights = classifier.feature_importances_
    total = max(weights.sum(), 1e-12)

    shares = []
    end = 0
    for name in parse_layers(list(columns), layers):
        start, stop = columns[name]
        width = stop - start
        own = weights[end : end + width]  # a layer's features lie side by side
        shares.append((name, own.sum() / total, width / len(weights)))
        end += width
    return shares


def explain_test(out, run, dataset, rows, rankings):
    """Draw the most confident mistakes of a test, and why, into `out`. rows: a data.Split.
    rankings: `predict.ranking` of each row."""
    mistakes = []
    pictures = {}
    for file, label, ranked in zip(rows.files, rows.labels, rankings):
        true = dataset.labels[label]
        answer, confidence = ranked[0]
        if answer != true:
            path = dataset.image_folder / file
            mistakes.append((path, true, answer, confidence))
            pictures[path] = ranked
    mistakes.sort(key=itemgetter(3), reverse=True)

    # as many of them as the gallery holds, each with what the run looks at
    shown = mistakes[: plots.GALLERY_ROWS * plots.GALLERY_COLUMNS]
    if shown:
        title = (
            f"{run.folder.name}: the most confident of {len(mistakes)} mistakes "
            f"on {len(rankings)} test images"
        )
        plots.plot_gallery(out / "gallery.png", shown, title, dataset.notice)
        print(f"{len(shown)} mistakes drawn in {out}/gallery.png")
    explain_pictures(out, run, {path: pictures[path] for path, *_ in shown}, dataset.notice)


def explain_pictures(out, run, rankings, notice):
    """Draw Grad-CAM of each picture into `out`/explained, numbered; of a run without a network of
    its own print the importance of the layers. rankings: {file: `predict.ranking` of it}."""
    if not run.is_network:
        print("Grad-CAM is for networks; this classifier has the importance of its layers.")
        explain_layers(out, run)
        return

    folder = out / "explained"
    folder.mkdir(exist_ok=True)
    network = load_model(run.folder)
    files = list(rankings)
    for start in progress(range(0, len(files), GRAD_CAM_BATCH), "drawing"):
        batch = files[start : start + GRAD_CAM_BATCH]
        images, _ = decode_all(batch, run.image_size)
        for number, (file, heatmap) in enumerate(zip(batch, grad_cam(network, images)), start + 1):
            path = folder / f"{number:04d}-{short_name(file.stem)}.png"
            plots.plot_explanation(path, file, heatmap, rankings[file], notice)


def explain_layers(out, run):
    """Print the importance of each layer for a forest or linear classifier, and write it as CSV."""
    pipeline = load_pipeline(run.folder / "pipeline.skops")
    columns = run.config["features"]["layers"]
    shares = layer_importance(pipeline, columns, run.metrics["layers"])
    header = ("layer", "importance", "features")
    print_table(header, [(layer, *map(percent, both)) for layer, *both in shares])

    path = out / "layer_importance.csv"
    rows = [dict(zip(header, row)) for row in shares]
    write_csv(path, [{**row, "dataset": run.metrics["dataset"]} for row in rows])
    print(f"The shares of the importance and of the features are in {path}")
