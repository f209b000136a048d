"""What is plotted, as PNG with the dataset's notice: curves, confusion matrices, explanations."""

import functools
import io
import warnings
from math import ceil

import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from sklearn.metrics import ConfusionMatrixDisplay

from transfer.files import printable, write_atomically
from transfer.images import open_image

GALLERY_ROWS = 4
GALLERY_COLUMNS = 6
MAX_COUNTED = 60  # classes of a confusion matrix up to which each cell says how many
MAX_SIDE = 448  # pixels a side at which a picture is shown
MAX_NAME = 40  # last letters of a file's name above its picture


def new_figure(width, height):
    """A matplotlib figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path, notice):
    """Write a figure as PNG, atomically, with the dataset's notice at its foot."""
    if notice:
        figure.supxlabel(notice, fontsize=8, color="firebrick")

    # fonts that have every letter
    texts = figure.findobj(Text)
    letters = frozenset("".join(text.get_text() for text in texts)) - {"\n"}
    for text in texts:
        text.set_fontfamily(fonts_for(letters))

    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # no font has it: `fonts_for` said so, once
        figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())


@functools.cache
def fonts_for(letters):
    """Names of fonts that together have all these letters; says which letters none has."""
    families = ["DejaVu Sans"]  # matplotlib's own
    missing = set(map(ord, letters)) - letters_of(font_manager.findfont(families[0]))
    if missing:
        for font in font_manager.fontManager.ttflist:
            found = missing & letters_of(font.fname)
            if found and "Last Resort" not in font.name:  # that one draws boxes
                families.append(font.name)
                missing -= found
    if missing:
        shown = "".join(map(chr, sorted(missing)))
        print(f"No font here has the letters {shown}; install one that has, Noto Sans perhaps.")
    return families


def letters_of(font_file):
    """The letters that a font has, as a set of code points."""
    return set(FT2Font(font_file).get_charmap())


def plot_curves(history, path, title, notice):
    """Plot loss and accuracy of a history (list of rows as in history.csv), its stages named above
    the curves."""
    epochs = [row["epoch"] for row in history]
    firsts = {row["stage"]: row for row in reversed(history)}  # of each stage
    starts = [row["epoch"] - 0.5 for row in firsts.values()]
    names = [f"{row['stage']}: {row['trained']}" for row in firsts.values()]

    figure = new_figure(11, 4.6)
    figure.suptitle(title)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, [row[key] for row in history], marker=".", label="train")
        axes.plot(epochs, [row[f"val_{key}"] for row in history], marker=".", label="val")
        axes.set(xlabel="epoch", ylabel=key)
        axes.locator_params(axis="x", integer=True)
        axes.legend()
        for start in starts:
            axes.axvline(start, color="grey", linestyle="--", linewidth=1)
        above = axes.secondary_xaxis("top")
        above.set_xticks(starts, names, rotation=20, ha="left", fontsize=7)
    save_figure(figure, path, notice)


def plot_confusion(matrix, labels, path, title, notice):
    """Plot a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    counted = len(labels) <= MAX_COUNTED
    size = max(6.5, 0.38 * min(len(labels), MAX_COUNTED) + 2.5)
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()
    axes.set_title(title)

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    display = ConfusionMatrixDisplay(share, display_labels=labels).plot(
        include_values=counted,
        cmap="Blues",
        xticks_rotation="vertical",
        ax=axes,
        im_kw={"vmin": 0, "vmax": 1},
        text_kw={"fontsize": 7},
    )
    display.im_.colorbar.set_label("share of the true class")
    axes.tick_params(labelsize=min(10, 10 * MAX_COUNTED / len(labels)))
    if counted:
        for cell, count in np.ndenumerate(matrix):
            display.text_[cell].set_text(count or "")
    save_figure(figure, path, notice)


def thumbnail(path):
    """A picture at the size at which it is shown, with its own aspect ratio."""
    image = open_image(path, MAX_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def plot_explanation(path, picture_path, heat, ranked, notice):
    """Plot one picture, its Grad-CAM map `heat` of 0 to 1, float32 (height, width) of any size, and
    its most likely classes. ranked: [(class, probability)], the most likely first."""
    figure = new_figure(11, 3.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))

    picture = thumbnail(picture_path)
    left.imshow(picture)
    left.set_title(printable(picture_path.name)[-MAX_NAME:], fontsize=9)
    left.axis("off")

    # the map over the picture in grey, which stays where nothing speaks for the class
    shown = middle.imshow(picture.convert("L").convert("RGB"))
    middle.imshow(
        heat,
        cmap="inferno",
        alpha=0.75 * heat,
        vmin=0,
        vmax=1,
        extent=shown.get_extent(),
        interpolation="bilinear",
    )
    middle.set_title(f"what speaks for {ranked[0][0]!r} (Grad-CAM)", fontsize=9)
    middle.axis("off")

    for name, probability in reversed(ranked):
        right.barh(f"{name}\n{probability:.2%}", probability, color="steelblue")
    right.set(xlim=(0, 1), xticks=())
    save_figure(figure, path, notice)


def plot_gallery(path, mistakes, title, notice):
    """Plot a gallery of mistakes, at most GALLERY_ROWS * GALLERY_COLUMNS: [(path, true class,
    predicted class, its probability)]."""
    rows = ceil(len(mistakes) / GALLERY_COLUMNS)
    figure = new_figure(2.15 * GALLERY_COLUMNS, 2.5 * rows + 0.6)
    figure.suptitle(title)
    grid = figure.subplots(rows, GALLERY_COLUMNS, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, (path_of_picture, true, predicted, probability) in zip(grid, mistakes):
        axes.imshow(thumbnail(path_of_picture))
        axes.set_title(f"{true}\n-> {predicted} {probability:.0%}", fontsize=8)
    save_figure(figure, path, notice)
