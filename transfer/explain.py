"""Why a run says what it says: Grad-CAM, galleries of mistakes, the importance of layers."""

import keras
import numpy as np

from common import convolutions, has_multilayer_head, parse_layers
from transfer import plots
from transfer.classifiers import load_pipeline
from transfer.console import percent, print_table, progress
from transfer.files import short_name, write_csv
from transfer.images import decode_image
from transfer.predict import ranking

GRAD_CAM_BATCH = 32  # pictures


def gradient(function, x):
    """Gradient of the scalar function(x) at the array x, on whichever backend Keras runs."""
    backend, x = keras.backend.backend(), keras.ops.convert_to_tensor(x)
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
    """Where the last convolution speaks for the class that each image is taken for. Grad-CAM (Selvaraju et
    al. 2017): the activations of the last convolution, each channel weighted by the mean gradient of the
    class's score before the softmax, summed, negative parts cut off. images: uint8 (b, size, size, 3).
    Returns float32 (b, h, w), each map scaled to a maximum of 1 (or all 0)."""
    *earlier, last = convolutions(model)
    tensors = [model.get_layer(last).output]
    if has_multilayer_head(model):
        tensors += [model.get_layer(f"{name}_mean").output for name in earlier]
    outputs = keras.Model(model.input, [*tensors, model.output]).predict_on_batch(images)
    activations, *means, probabilities = (np.asarray(output, "float32") for output in outputs)
    means = [keras.ops.convert_to_tensor(mean) for mean in means]
    upper = keras.Model(tensors, model.output)
    chosen = keras.ops.one_hot(probabilities.argmax(axis=1), model.output_shape[-1])
    softmax = model.get_layer("predictions")
    before, softmax.activation = softmax.activation, keras.activations.linear
    try:
        slopes = gradient(
            lambda a: keras.ops.sum(upper([a, *means], training=False) * chosen), activations
        )
    finally:
        softmax.activation = before
    weights = slopes.astype("float32").mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((weights * activations).sum(axis=-1), 0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def layer_importance(pipeline, columns, layers):
    """({layer: share of the importance}, {layer: share of the features}) of a fitted pipeline. A forest's
    importance of a layer is the sum of its features' (mean decrease of impurity); a linear classifier's is
    the sum of its features' absolute weights, which act on standardised features."""
    classifier, names = pipeline[-1], parse_layers(list(columns), layers)
    linear = hasattr(classifier, "coef_")
    weights = np.abs(classifier.coef_).sum(axis=0) if linear else classifier.feature_importances_
    widths = [columns[name][1] - columns[name][0] for name in names]
    sums = [part.sum() for part in np.split(weights, np.cumsum(widths)[:-1])]
    total = max(sum(sums), 1e-12)
    importance = {name: float(value / total) for name, value in zip(names, sums)}
    return importance, {name: width / sum(widths) for name, width in zip(names, widths)}


def explain_test(out, run, dataset, tested, network):
    """Draw the most confident mistakes of the test split (report.TestResult), and why, into folder `out`."""
    predicted, confidence = tested.probabilities.argmax(axis=1), tested.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != tested.true)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    paths = {row: dataset.image_folder / tested.files[row] for row in wrong}
    if len(wrong):
        names = np.array(dataset.labels)
        answers = names[tested.true[wrong]], names[predicted[wrong]], confidence[wrong]
        mistakes = list(zip(paths.values(), *answers))
        counts = f"{len(wrong)} mistakes on {len(tested.files)} test images"
        title = f"{run.folder.name}: the most confident of {counts}"
        drawn = plots.plot_gallery(out / "gallery.png", mistakes, title, dataset.notice)
        print(f"{drawn} mistakes drawn in {out}/gallery.png")
    if not run.is_network:
        explain_layers(out, run)
        return
    chosen = wrong[: plots.GALLERY_ROWS * plots.GALLERY_COLUMNS]
    rankings = {paths[row]: ranking(tested.probabilities[row], dataset.labels) for row in chosen}
    explain_pictures(out / "explained", network, run.image_size, rankings, dataset.notice)


def explain_layers(out, run):
    """Print the importance of each layer for a forest or linear classifier, and write it as CSV."""
    pipeline, columns = (
        load_pipeline(run.folder / "pipeline.skops"),
        run.config["features"]["layers"],
    )
    shares = layer_importance(pipeline, columns, run.metrics["layers"])
    rows = [(name, *(part[name] for part in shares)) for name in shares[0]]
    header, dataset = ("layer", "importance", "features"), run.config["dataset"]["name"]
    print_table(header, [(name, *map(percent, values)) for name, *values in rows])
    write_csv(
        out / "layer_importance.csv", [dict(zip(header, row), dataset=dataset) for row in rows]
    )
    print(f"The shares of the importance and of the features are in {out}/layer_importance.csv")


def explain_pictures(out, network, image_size, rankings, notice):
    """Draw Grad-CAM of each picture into the folder `out`, numbered. rankings: {file: its `ranking`}."""
    out.mkdir(parents=True, exist_ok=True)
    files = list(rankings)
    for start in progress(range(0, len(files), GRAD_CAM_BATCH), "drawing"):
        batch = files[start : start + GRAD_CAM_BATCH]
        maps = grad_cam(
            network, np.array([decode_image(file, image_size) for file in batch], "uint8")
        )
        for number, (file, heat) in enumerate(zip(batch, maps), start + 1):
            name = f"{number:04d}-{short_name(file.stem)}.png"
            plots.plot_explanation(out / name, file, heat, rankings[file], notice)
