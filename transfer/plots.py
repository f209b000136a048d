"""What is drawn: curves, confusion matrices, explanations. PNG files, each with the dataset's notice."""

import io

import numpy as np

from transfer.files import write_atomically
from transfer.images import open_image
from transfer.screen import percent

GALLERY_ROWS, GALLERY_COLUMNS = 4, 6
SIDE = 448  # most pixels a side at which a picture is shown


def save_figure(figure, path, notice):
    """Write a matplotlib figure as PNG, atomically, with the dataset's notice at its foot."""
    if notice:
        figure.text(0.5, 0.005, notice, ha="center", va="bottom", fontsize=8, color="firebrick")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())


def plot_curves(history, path, title, notice):
    """Draw loss and accuracy of a history (list of rows as in history.csv) with its steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.04, 1, 0.96))
    figure.suptitle(title)
    epochs = [row["epoch"] for row in history]
    starts = [
        row for before, row in zip([None, *history], history) if not before or before["step"] != row["step"]
    ]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name, label in ((key, "train"), (f"val_{key}", "val")):
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "accuracy":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
        for row in starts:
            if row is not history[0]:
                axes.axvline(row["epoch"] - 0.5, color="grey", linestyle="--", linewidth=1)
            # along the line, at the end of the axis that the curves leave free
            y, side = (0.98, "top") if key == "loss" else (0.02, "bottom")
            axes.text(
                row["epoch"] - 0.5,
                y,
                f"{row['step']}: {row['trained']}",
                transform=axes.get_xaxis_transform(),
                rotation=90,
                ha="left",
                va=side,
                fontsize=7,
                color="dimgrey",
            ).set_in_layout(False)  # else a long name squeezes the axes
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, notice)


def plot_confusion(matrix, labels, path, title, notice):
    """Draw a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    from matplotlib.figure import Figure

    size = max(6.5, 0.38 * len(labels) + 2.5)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0.025, 1, 0.975))
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=colour)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=90)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    save_figure(figure, path, notice)


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
