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

EXPLAINED_BATCH = 8  # pictures, of which all convolutions' outputs are in memory


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
    as `scaled` gives them."""
    # the network in two: up to its last convolution, and from there to its softmax
    last_conv = model.get_layer(convolutions(model)[-1]).output
    lower = keras.Model(model.input, [last_conv, model.output])
    softmax = model.get_layer("predictions")
    upper = keras.Model(last_conv, softmax.input)

    # What the last convolution gives, (b, h, w, channels), and the class each image is taken for.
    last_conv_layer_output, probabilities = lower.predict_on_batch(images)
    last_conv_layer_output = np.asarray(last_conv_layer_output, "float32")
    chosen = keras.ops.one_hot(probabilities.argmax(axis=1), probabilities.shape[1])

    # The gradient of that class's score before the softmax, which flattens it where it is certain.
    def score(last_output):
        scores = keras.ops.matmul(upper(last_output, training=False), softmax.kernel)
        return keras.ops.sum(scores * chosen)

    gradients = gradient(score, last_conv_layer_output).astype("float32")

    # How much each channel speaks for the class: its mean gradient, (b, 1, 1, channels).
    pooled_gradients = gradients.mean(axis=(1, 2), keepdims=True)
    return scaled((pooled_gradients * last_conv_layer_output).sum(axis=-1))


def scaled(maps):
    """Maps (b, h, w) without what speaks against the class, each with a maximum of 1, or all 0
    where nothing speaks for it."""
    maps = np.maximum(maps, 0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def all_layers_map(model, images):
    """Where all convolutions of a network with the head multilayer speak for the class that each
    image is taken for. images: uint8 (b, size, size, 3). Returns (heatmaps float32 (b, h, w) of the
    last one's size, as `scaled` gives them; what each convolution adds to the score, (13, b)).

    The score is that before the softmax, above the mean of all classes. As it is linear in the
    means of the convolutions, what they add makes exactly what it has above that of the mean
    training image."""
    tensors = [model.get_layer(name).output for name in convolutions(model)]
    network = keras.Model(model.input, [*tensors, model.output])
    *outputs, probabilities = network.predict_on_batch(images)

    # how the score grows with each mean, (b, n_features)
    norm = model.get_layer("batch_normalization")
    gamma, _, average, variance = norm.get_weights()
    kernel, _ = model.get_layer("predictions").get_weights()
    above_others = kernel.T[probabilities.argmax(axis=1)] - kernel.mean(axis=1)
    slopes = gamma / np.sqrt(variance + norm.epsilon) * above_others

    # convolution by convolution, whose features lie side by side
    added = []
    total = 0
    stop = 0
    for output in outputs:
        columns = slice(stop, stop + output.shape[-1])
        stop = columns.stop
        maps = np.einsum("bhwc,bc->bhw", output - average[columns], slopes[:, columns])
        added.append(maps.mean(axis=(1, 2)))
        small = keras.ops.image.resize(maps[..., None], outputs[-1].shape[1:3], antialias=True)
        total = total + keras.ops.convert_to_numpy(small)[..., 0]
    return scaled(total), np.array(added)


def layer_importance(pipeline, columns, layers):
    """[(layer, share of the importance, share of the features)] of a fitted pipeline. A layer's
    importance to a forest is the sum of its features' (mean decrease of impurity); to a linear
    classifier it is the sum of their absolute weights, which act on standardised features."""
    classifier = pipeline[-1]
    if hasattr(classifier, "coef_"):
        weights = np.abs(classifier.coef_).sum(axis=0)
    else:
        weights = classifier.feature_importances_

    # a layer's features lie side by side
    names = parse_layers(list(columns), layers)
    widths = np.array([np.ptp(columns[name]) for name in names])
    starts = np.cumsum(widths) - widths
    own = np.add.reduceat(weights, starts)  # each sum ends where the next one starts
    return list(zip(names, own / max(weights.sum(), 1e-12), widths / len(weights)))


def explain_test(out, run, dataset, rows, rankings):
    """Draw the most confident mistakes of a test, and why, into `out`. rows: a data.Split.
    rankings: `predict.ranking` of each row."""
    # the most confident ones, as many as the gallery holds
    mistakes = []
    for file, label, ranked in zip(rows.files, rows.labels, rankings):
        true = dataset.labels[label]
        answer, confidence = ranked[0]
        if answer != true:
            mistakes.append((dataset.image_folder / file, true, answer, confidence, ranked))
    mistakes.sort(key=itemgetter(3), reverse=True)
    shown = mistakes[: plots.GALLERY_SIZE]

    if shown:
        title = (
            f"{run.folder.name}: the most confident of {len(mistakes)} mistakes "
            f"on {len(rankings)} test images"
        )
        plots.plot_gallery(out / "gallery.png", shown, title, dataset.notice)
        print(f"{len(shown)} mistakes drawn in {out}/gallery.png")
    explain_pictures(out, run, {path: ranked for path, *_, ranked in shown}, dataset.notice)


def explain_pictures(out, run, rankings, notice):
    """Draw where each picture speaks for its class into `out`/explained, numbered; of a run without
    a network of its own print the importance of the layers. rankings: {file: `predict.ranking` of
    it}."""
    if not run.is_network:
        print("Grad-CAM is for networks; this classifier has the importance of its layers.")
        explain_layers(out, run)
        return

    # the network, and the map that goes with its head
    folder = out / "explained"
    folder.mkdir(exist_ok=True)
    network = load_model(run.folder)
    all_layers = has_multilayer_head(network)

    # the maps, a few pictures at once
    sums = 0  # of what each convolution adds to the scores
    files = list(rankings)
    for start in progress(range(0, len(files), EXPLAINED_BATCH), "drawing"):
        batch = files[start : start + EXPLAINED_BATCH]
        images, _ = decode_all(batch, run.image_size)
        if all_layers:
            heatmaps, added = all_layers_map(network, images)
            sums += added.sum(axis=1)
        else:
            heatmaps = grad_cam(network, images)
        for number, (file, heatmap) in enumerate(zip(batch, heatmaps), start + 1):
            path = folder / f"{number:04d}-{short_name(file.stem)}.png"
            plots.plot_explanation(path, file, heatmap, rankings[file], notice)

    if np.any(sums):
        share = percent(sums[-1] / sums.sum())
        print(
            "The maps add up all 13 convolutions; the last one, which is all that Grad-CAM shows, "
            f"makes {share} of the scores."
        )


def explain_layers(out, run):
    """Print the importance of each layer for a forest or linear classifier, and write it as CSV."""
    pipeline = load_pipeline(run.folder / "pipeline.skops")
    shares = layer_importance(pipeline, run.config["features"]["layers"], run.metrics["layers"])
    header = ("layer", "importance", "features")
    print_table(header, [(layer, *map(percent, both)) for layer, *both in shares])

    path = out / "layer_importance.csv"
    write_csv(path, [dict(zip(header, row), dataset=run.metrics["dataset"]) for row in shares])
    print(f"The shares of the importance and of the features are in {path}")
