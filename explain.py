"""Why a model says what it says: Grad-CAM, a gallery of mistakes, and the layers a pipeline relies on."""

import numpy as np

from common import convolutions, select_layers, split_model
from dataset import open_image
from record import percent, save_figure

GALLERY_ROWS, GALLERY_COLUMNS = 4, 6
SIDE = 448  # most pixels a side at which a picture is shown


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

    lower, upper = split_model(model, convolutions(model)[-1])
    x = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    activations = np.asarray(lower.predict_on_batch(x), "float32")  # (b, h, w, channels)
    predicted = np.asarray(upper.predict_on_batch(activations), "float32").argmax(axis=1)
    chosen = keras.ops.one_hot(predicted, upper.output_shape[-1])
    softmax = model.get_layer("predictions")
    before, softmax.activation = softmax.activation, keras.activations.linear
    try:
        slopes = gradient(lambda a: keras.ops.sum(call_layers(upper, a) * chosen), activations)
    finally:
        softmax.activation = before
    weights = slopes.astype("float32").mean(axis=(1, 2), keepdims=True)
    maps = np.maximum((weights * activations).sum(axis=-1), 0)
    return maps / np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)


def call_layers(model, x):
    """The output of a sequence of layers as it is now, not as a compiled function has it."""
    for layer in model.layers[1:]:
        x = layer(x, training=False)
    return x


def shown(path):
    """A picture at the size at which it is drawn, with its own aspect ratio."""
    image = open_image(path)
    image.thumbnail((SIDE, SIDE))
    return image


def overlay(picture, heat):
    """A Pillow picture under a Grad-CAM map float32 (h, w): uint8 (height, width, 3)."""
    from matplotlib import colormaps
    from PIL import Image

    heat = Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(heat), 0, 1)
    coloured = 255 * colormaps["inferno"](heat)[..., :3]
    strength = 0.75 * heat[..., None]  # where nothing speaks for the class the picture stays as it is
    grey = np.asarray(picture.convert("L"), "float32")[..., None]
    return ((1 - strength) * grey + strength * coloured).astype("uint8")


def plot_explanation(path, picture_path, heat, ranked, notice):
    """Write one picture, its Grad-CAM map and its most likely classes as PNG."""
    from matplotlib.figure import Figure

    picture = shown(picture_path)
    figure = Figure(figsize=(11, 3.9), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.06, 1, 0.92))
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    left.imshow(picture)
    left.set_title(
        picture_path.name if len(picture_path.name) < 40 else f"...{picture_path.name[-36:]}", fontsize=9
    )
    middle.imshow(overlay(picture, heat))
    middle.set_title(f"what speaks for {ranked[0][0]!r} (Grad-CAM)", fontsize=9)
    for axes in (left, middle):
        axes.axis("off")
    names, probabilities = zip(*reversed(ranked))
    bars = right.barh(names, probabilities, height=0.55, color="steelblue")
    right.bar_label(bars, [percent(p) for p in probabilities], padding=3, fontsize=8)
    right.set(xlim=(0, 1.25), xticks=())
    right.tick_params(axis="y", length=0, labelsize=8)
    right.spines[:].set_visible(False)
    save_figure(figure, path, notice)


def plot_gallery(path, mistakes, title, notice):
    """Write the gallery of the most confident mistakes as PNG.

    mistakes: [(picture's path, true class, predicted class, its probability)], the most confident first;
    as many as the grid holds are drawn. Returns how many that is.
    """
    from matplotlib.figure import Figure

    mistakes = mistakes[: GALLERY_ROWS * GALLERY_COLUMNS]
    rows = max(1, -(-len(mistakes) // GALLERY_COLUMNS))
    figure = Figure(figsize=(2.15 * GALLERY_COLUMNS, 2.5 * rows + 0.6), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.02, 1, 0.98))
    figure.suptitle(title)
    for number, axes in enumerate(figure.subplots(rows, GALLERY_COLUMNS, squeeze=False).flat):
        axes.axis("off")
        if number < len(mistakes):
            picture, true, predicted, probability = mistakes[number]
            axes.imshow(shown(picture))
            axes.set_title(f"{true}\n-> {predicted} {100 * probability:.0f}%", fontsize=8)
    save_figure(figure, path, notice)
    return len(mistakes)


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


def plot_importance(path, importance, features, title, notice):
    """Write `layer_importance` as a bar chart, PNG: each layer's share beside its share of the features."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 0.32 * len(importance) + 1.9), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))
    axes = figure.subplots()
    names = list(importance)
    axes.barh(names, importance.values(), color="steelblue", label="share of the importance")
    for row, name in enumerate(names):  # right of both
        end = max(importance[name], features[name])
        axes.annotate(
            percent(importance[name]),
            (end, row),
            (5, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
        )
    axes.plot(features.values(), names, "|", color="black", markersize=11, label="share of the features")
    axes.invert_yaxis()  # the first layer on top
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, 1.15 * max(*importance.values(), *features.values()))
    axes.set_title(title, fontsize=10)
    axes.legend(loc="best", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path, notice)
