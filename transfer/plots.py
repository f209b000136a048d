"""What is plotted, as PNG with the dataset's notice: curves, confusion matrices, explanations."""

import contextlib
import io
import warnings
from math import ceil

import numpy as np
from matplotlib import font_manager, style
from matplotlib.figure import Figure

from transfer.files import printable, write_atomically
from transfer.images import read_image

GALLERY_SIZE = 24  # pictures, at most
GALLERY_COLUMNS = 6
MAX_COUNTED = 60  # classes of a confusion matrix up to which each cell says how many
MAX_NAMED = 100  # classes up to which each is named beside it
# matplotlib's own and, for letters that it lacks, those of Linux, Windows and macOS
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans", "Microsoft YaHei", "Arial Unicode MS")
INSTALLED = set(font_manager.get_font_names())
# matplotlib's own settings in the place of a user's; a dollar in a name begins no formula
SETTINGS = (
    "default",
    {"text.parse_math": False, "font.family": [name for name in FONTS if name in INSTALLED]},
)
MAX_SIDE = 448  # pixels a side at which a picture is shown
MAX_NAME = 40  # last letters of a file's name above its picture


@contextlib.contextmanager
def picture():
    """Decorates a function that plots: what goes wrong there is printed, and ends nothing, as the
    figures matter more than a picture of them."""
    try:
        with style.context(SETTINGS):
            yield
    except Exception as error:
        print(f"A picture could not be drawn ({error!r}); its figures are in the files beside it.")


def new_figure(width, height):
    """A matplotlib figure of so many inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure, path, notice):
    """Write a figure as PNG, atomically, with the dataset's notice at its foot."""
    if notice:
        figure.supxlabel(notice, fontsize=8, color="firebrick")

    stream = io.BytesIO()
    with warnings.catch_warnings(record=True, action="always") as caught:
        figure.savefig(stream, format="png", dpi=130)
    write_atomically(path, stream.getvalue())
    if any("Glyph" in str(warning.message) for warning in caught):
        print(f"No font here has all letters of {path}; install one that has: {FONTS[1]}, say.")


@picture()
def plot_curves(history, path, title, notice):
    """Plot loss and accuracy of a history (list of rows as in history.csv), its stages named above
    the curves."""
    epochs = [row["epoch"] for row in history]
    firsts = {row["stage"]: row for row in reversed(history)}  # of each stage

    figure = new_figure(11, 4.6)
    figure.suptitle(title)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, [row[key] for row in history], marker=".", label="train")
        axes.plot(epochs, [row[f"val_{key}"] for row in history], marker=".", label="val")
        axes.set(xlabel="epoch", ylabel=key)
        axes.locator_params(axis="x", integer=True)
        axes.legend()
        for number, row in firsts.items():
            start = row["epoch"] - 0.5
            axes.axvline(start, color="grey", linestyle="--", linewidth=1)
            axes.annotate(
                f"{number}: {row['trained']}",
                (start, 1.02),
                xycoords=("data", "axes fraction"),
                rotation=35,
                fontsize=7,
            )
    save_figure(figure, path, notice)


@picture()
def plot_confusion(matrix, labels, path, title, notice):
    """Plot a confusion matrix of counts (true rows, predicted columns), coloured by row share."""
    count = len(labels)
    size = np.clip(0.38 * count + 2.5, 6.5, 13)
    figure = new_figure(size + 0.8, size)
    axes = figure.subplots()

    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class")

    # as many names as can be read, one for every so many classes
    named = range(0, count, ceil(count / MAX_NAMED))
    names = [labels[number] for number in named]
    axes.set_xticks(named, names, rotation=90, fontsize=7)
    axes.set_yticks(named, names, fontsize=7)
    axes.set(title=title, xlabel="predicted class", ylabel="true class")

    # and numbers
    if count <= MAX_COUNTED:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                colour = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, number, color=colour, fontsize=7, ha="center", va="center")
    save_figure(figure, path, notice)


def thumbnail(path):
    """A picture at the size at which it is shown, with its own aspect ratio."""

    def shrink(image):
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        return image

    return read_image(path, MAX_SIDE, shrink)


@picture()
def plot_explanation(path, picture_path, heat, ranked, notice):
    """Plot one picture, its map `heat` of 0 to 1, float32 (height, width) of any size, and
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
    middle.set_title(f"what speaks for {ranked[0][0]!r}", fontsize=9)
    middle.axis("off")

    for name, probability in ranked:
        right.barh(f"{name}\n{probability:.2%}", probability, color="steelblue")
    right.invert_yaxis()
    right.set(xlim=(0, 1), xticks=())
    save_figure(figure, path, notice)


@picture()
def plot_gallery(path, mistakes, title, notice):
    """Plot a gallery of mistakes, at most GALLERY_SIZE: [(path, true class,
    predicted class, its probability, ...)]."""
    rows = ceil(len(mistakes) / GALLERY_COLUMNS)
    figure = new_figure(2.15 * GALLERY_COLUMNS, 2.5 * rows + 0.6)
    figure.suptitle(title)
    grid = figure.subplots(rows, GALLERY_COLUMNS).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, (path_of_picture, true, predicted, probability, *_) in zip(grid, mistakes):
        axes.imshow(thumbnail(path_of_picture))
        axes.set_title(f"{true}\n-> {predicted} {probability:.0%}", fontsize=8)
    save_figure(figure, path, notice)
