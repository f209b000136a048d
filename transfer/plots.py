"""What is drawn: curves, confusion matrices, explanations. PNG files, each with the dataset's notice."""

import functools
import io
import warnings

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image

from transfer.console import percent
from transfer.files import printable, write_atomically
from transfer.images import open_image

GALLERY_ROWS, GALLERY_COLUMNS = 4, 6
MOST_COUNTED = 60  # classes of a confusion matrix up to which each cell says how many
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
    texts = figure.findobj(Text)
    fonts = fonts_for(frozenset("".join(text.get_text() for text in texts)) - frozenset("\n"))
    for text in texts:
        text.set_fontfamily(fonts)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph"
        )  # missing from all fonts: said by `fonts_for`, once
        figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())


@functools.cache
def fonts_for(letters):
    """Names of fonts that have all these letters together, matplotlib's own first; says where none has."""
    families = ["DejaVu Sans"]
    missing = set(map(ord, letters)) - set(FT2Font(font_manager.findfont(*families)).get_charmap())
    for font in font_manager.fontManager.ttflist if missing else ():
        found = missing & set(FT2Font(font.fname).get_charmap())
        if found and "Last Resort" not in font.name:  # that one draws boxes
            families, missing = [*families, font.name], missing - found
    if missing:
        print(
            f"No font here has the letters {''.join(map(chr, sorted(missing)))}; install Noto Sans, say."
        )
    return families


def plot_curves(history, path, title, notice):
    """Draw loss and accuracy of a history (list of rows as in history.csv) with its stages."""
    figure = new_figure(11, 4.6)
    figure.suptitle(title)
    epochs = [row["epoch"] for row in history]
    starts = {row["stage"]: row for row in reversed(history)}.values()
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for name, label in ((key, "train"), (f"val_{key}", "val")):
            axes.plot(epochs, [row[name] for row in history], marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=key)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "accuracy":
            axes.set_ylim(0, 1)
            axes.yaxis.set_major_formatter("{x:.0%}")
        # along each stage's line, where curves leave room; outside the layout, which a long name squeezes
        y, side = (0.98, "top") if key == "loss" else (0.02, "bottom")
        along = {"rotation": 90, "ha": "left", "va": side, "fontsize": 7, "in_layout": False}
        for row in starts:
            if row is not history[0]:
                axes.axvline(row["epoch"] - 0.5, color="grey", linestyle="--", linewidth=1)
            place = row["epoch"] - 0.5, y, f"{row['stage']}: {row['trained']}"
            axes.text(*place, color="dimgrey", transform=axes.get_xaxis_transform(), **along)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(figure, path, notice)


def plot_confusion(matrix, labels, path, title, notice):
    """Draw a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    size = max(6.5, 0.38 * min(len(labels), MOST_COUNTED) + 2.5)
    figure = new_figure(size + 0.8, size, 0.025)
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix > 0) if len(labels) <= MOST_COUNTED else ():
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(
            column, row, matrix[row, column], ha="center", va="center", fontsize=7, color=colour
        )
    font = min(10, 10 * MOST_COUNTED / len(labels))
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=font)
    axes.set_yticks(range(len(labels)), labels, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
    save_figure(figure, path, notice)


def thumbnail(path):
    """A picture at the size at which it is drawn, with its own aspect ratio."""
    image = open_image(path, SIDE)
    image.thumbnail((SIDE, SIDE))
    return image


def plot_explanation(path, picture_path, heat, ranked, notice):
    """Write one picture, its Grad-CAM map and its most likely classes as PNG."""
    picture, name = thumbnail(picture_path), printable(picture_path.name)
    figure = new_figure(11, 3.9, 0.06)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    left.imshow(picture)
    left.set_title(name if len(name) < 40 else f"...{name[-36:]}", fontsize=9)
    heat = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BICUBIC)).clip(
        0, 1
    )
    strength = (
        0.75 * heat[..., None]
    )  # where nothing speaks for the class the picture stays, in grey
    grey = (1 - strength) * np.asarray(picture.convert("L"), "float32")[..., None]
    middle.imshow((grey + 255 * strength * colormaps["inferno"](heat)[..., :3]).astype("uint8"))
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
    predicted class, its probability)], the most confident first. Returns how many the grid holds."""
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
