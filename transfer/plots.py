"""What is drawn: curves, confusion matrices, explanations. PNG files, each with the dataset's notice."""

import io

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image, ImageOps

from transfer.images import open_image
from transfer.screen import percent
from transfer.store import write_atomically

GALLERY_ROWS, GALLERY_COLUMNS = 4, 6
SIDE = 448  # most pixels a side at which a picture is shown


def new_figure(width, height, foot=0.04):
    """A matplotlib figure with room for a notice at its foot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, foot, 1, 1 - foot))
    return figure


def save_figure(figure, path, notice):
    """Write a figure as PNG, atomically, with the dataset's notice at its foot."""
    if notice:
        figure.text(0.5, 0.005, notice, ha="center", va="bottom", fontsize=8, color="firebrick")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())


def plot_curves(history, path, title, notice):
    """Draw loss and accuracy of a history (list of rows as in history.csv) with its steps."""
    figure = new_figure(11, 4.6)
    figure.suptitle(title)
    epochs = [row["epoch"] for row in history]
    starts = {row["step"]: row for row in reversed(history)}.values()
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name, label in ((key, "train"), (f"val_{key}", "val")):
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "accuracy":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
        # along each step's line, at the end of the axis that the curves leave free
        y, side = (0.98, "top") if key == "loss" else (0.02, "bottom")
        along = {"transform": axes.get_xaxis_transform(), "rotation": 90, "ha": "left", "va": side}
        for row in starts:
            start, name = row["epoch"] - 0.5, f"{row['step']}: {row['trained']}"
            if row is not history[0]:
                axes.axvline(start, color="grey", linestyle="--", linewidth=1)
            # outside the layout, else a long name squeezes the axes
            axes.text(start, y, name, fontsize=7, color="dimgrey", in_layout=False, **along)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, notice)


def plot_confusion(matrix, labels, path, title, notice):
    """Draw a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    size = max(6.5, 0.38 * len(labels) + 2.5)
    figure = new_figure(size + 0.8, size, 0.025)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    save_figure(figure, path, notice)


def thumbnail(path):
    """A picture at the size at which it is drawn, with its own aspect ratio."""
    return ImageOps.contain(open_image(path), (SIDE, SIDE))


def overlay(picture, heat):
    """A Pillow picture under a Grad-CAM map float32 (h, w): uint8 (height, width, 3)."""
    heat = Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(heat), 0, 1)
    coloured = 255 * colormaps["inferno"](heat)[..., :3]
    strength = 0.75 * heat[..., None]  # where nothing speaks for the class the picture stays as it is
    grey = np.asarray(picture.convert("L"), "float32")[..., None]
    return ((1 - strength) * grey + strength * coloured).astype("uint8")


def plot_explanation(path, picture_path, heat, ranked, notice):
    """Write one picture, its Grad-CAM map and its most likely classes as PNG."""
    picture, name = thumbnail(picture_path), picture_path.name
    figure = new_figure(11, 3.9, 0.06)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    left.imshow(picture)
    left.set_title(name if len(name) < 40 else f"...{name[-36:]}", fontsize=9)
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
    """Write the gallery of the most confident mistakes as PNG. mistakes: [(picture's path, true class,
    predicted class, its probability)], the most confident first; as many as the grid holds are drawn.
    Returns how many that is."""
    mistakes = mistakes[: GALLERY_ROWS * GALLERY_COLUMNS]
    rows = max(1, -(-len(mistakes) // GALLERY_COLUMNS))
    figure = new_figure(2.15 * GALLERY_COLUMNS, 2.5 * rows + 0.6, 0.02)
    figure.suptitle(title)
    for number, axes in enumerate(figure.subplots(rows, GALLERY_COLUMNS, squeeze=False).flat):
        axes.axis("off")
        if number < len(mistakes):
            picture, true, predicted, probability = mistakes[number]
            axes.imshow(thumbnail(picture))
            axes.set_title(f"{true}\n-> {predicted} {100 * probability:.0f}%", fontsize=8)
    save_figure(figure, path, notice)
    return len(mistakes)


def plot_importance(path, importance, features, title, notice):
    """Write `explain.layer_importance` as a bar chart, PNG: each layer's share beside its share of the
    features."""
    figure = new_figure(8, 0.32 * len(importance) + 1.9, 0.05)
    axes, names = figure.subplots(), list(importance)
    axes.barh(names, importance.values(), color="steelblue", label="share of the importance")
    axes.plot(features.values(), names, "|", color="black", markersize=11, label="share of the features")
    beside = {"xytext": (5, 0), "textcoords": "offset points", "fontsize": 8, "va": "center"}
    for row, name in enumerate(names):
        axes.annotate(percent(importance[name]), (max(importance[name], features[name]), row), **beside)
    axes.invert_yaxis()  # the first layer on top
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlim(0, 1.15 * max(*importance.values(), *features.values()))
    axes.set_title(title, fontsize=10)
    axes.legend(loc="best", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path, notice)
