"""Pictures as arrays: files decoded, each once, and kept on disk."""

import contextlib
import hashlib
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from transfer.console import BadInput, progress
from transfer.files import ArrayFile, Rows, build_or_load_array, read_json, write_json

DECODING = 3  # version of what this module makes of a file: part of the key of all that is stored
DECODE_BLOCK = 256  # images decoded and written at once
LARGE_PIXELS = 2**26  # above which pictures are decoded one at a time
LARGEST_VALUES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
NO_SUCH_FILE = "there is no such file"
MAX_LISTED = 1000  # unreadable files that an error lists, of all those that it counts
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # in bytes, or "max"

one_large_picture = threading.Lock()
warnings.filterwarnings("ignore", module=r"PIL\.")  # of large or odd pictures, decided on here
Image.MAX_IMAGE_PIXELS = None  # as `check_size` decides
pillow_heif.register_heif_opener()


def open_image(path, size):
    """One image file as a Pillow image in RGB, the right way up, transparent places white; of an
    animation the first picture. size: pixels a side that are needed of it. Raises OSError
    (UnidentifiedImageError among them) or ValueError where it cannot be read, is no picture, or
    would take too much memory."""
    with Image.open(path) as image:
        large = image.width * image.height > LARGE_PIXELS
        with one_large_picture if large else contextlib.nullcontext():
            if large:
                check_size(image, size)
            image = ImageOps.exif_transpose(image)

            # grey of more than 8 bits, and floats: convert() would cut them off at 255
            if image.mode[0] in "IF":
                image = Image.fromarray(as_bytes(np.asarray(image)))

            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")


def check_size(image, size):
    """Raise ValueError where a large picture takes too much memory, before it is decoded. A JPEG's
    decoder gives an eighth of the size as well, and reads line by line unless the file is
    progressive."""
    width, height = image.size
    image.draft(None, (size, size))
    needed = 4 * image.width * image.height
    if image.info.get("progressive"):
        needed += 6 * width * height

    limit = memory_limit() / 10
    if needed > limit:
        raise ValueError(
            f"its {width} x {height} pixels would take {needed / 1e9:.1f} GB, more than a tenth of"
            f" this machine's memory ({limit / 1e9:.1f} GB)"
        )


def memory_limit():
    """Bytes of memory that this machine has, or that the container which it runs in may take."""
    limit = 8e9  # where the machine does not say
    if hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(limit, int(CONTAINER_LIMIT.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return limit


def as_bytes(values):
    """Grey values of any type as uint8. Their range is the smallest usual one that holds them: 1
    for floats, or 8 to 16 bits. ValueError where there is none."""
    highest = values.max()
    ranges = [largest for largest in LARGEST_VALUES if highest <= largest]  # none for NaN
    if values.min() < 0 or not ranges:
        raise ValueError("it has values that are negative, above 16 bits, or no numbers")
    largest = ranges[0]
    if values.dtype.kind == "f" and highest <= 1:
        largest = 1
    return np.rint(values * np.float32(255 / largest)).astype("uint8")


def decode_image(path, image_size):
    """One image file as uint8 (image_size, image_size, 3), resized bilinearly; errors as
    `open_image`."""
    size = (image_size, image_size)
    return np.asarray(open_image(path, image_size).resize(size, Image.Resampling.BILINEAR))


def decode_all(paths, image_size, description=None):
    """Decode `paths` on all cores. description: what is shown of the progress; nothing without it.
    Returns (uint8 (n, size, size, 3), {row that could not be read, left black: why})."""
    images = np.zeros((len(paths), image_size, image_size, 3), "uint8")

    def decode(row):
        try:
            images[row] = decode_image(paths[row], image_size)
        except FileNotFoundError:
            return NO_SUCH_FILE
        except UnidentifiedImageError:
            return "it is not a picture, or of a kind that cannot be read"
        except Exception as error:  # whatever Pillow makes of a broken file, the file gets named
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return " ".join(reason.split())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = pool.map(decode, range(len(paths)))
        if description:
            reasons = progress(reasons, description, len(paths), " images")
        return images, {row: reason for row, reason in enumerate(reasons) if reason}


def readable_again(paths, image_size):
    """How many of the files at `paths`, all of them unreadable when they were last tried, can be
    read now, as their rights or Pillow may have changed: neither changes a file's size or time."""
    _, unreadable = decode_all(paths, image_size)
    return len(paths) - len(unreadable)


def load_images(dataset, splits, image_size, cache="data/cache", skip_unreadable=False):
    """Decode and resize every image of `splits` once; later calls find them on disk. cache: folder
    for the decoded images, memory-mapped uint8 (n, size, size, 3) .npy files, safe to delete; or
    "none", which keeps them in memory. Returns the dataset with `images` in each of `splits`,
    without the rows that cannot be read, which `skipped` lists. BadInput names every such file,
    unless `skip_unreadable`, and a class of which none is left."""
    kept = {}
    skipped = {}
    for name in splits:
        split = dataset.splits[name]
        images, unreadable = cached_images(dataset, name, image_size, cache)
        if unreadable:
            readable = np.flatnonzero(~np.isin(split.files, list(unreadable)))
            split = split.take(readable)
            images = Rows(images, readable)
        kept[name] = split._replace(images=images)
        skipped |= unreadable

    # a network can do without some images, not without a class
    if skipped and not skip_unreadable:
        raise BadInput(describe_skipped(dataset, skipped))
    for name, split in kept.items():
        lost = np.setdiff1d(dataset.splits[name].labels, split.labels)
        if len(lost):
            raise BadInput(
                f"No {name} image of the class {dataset.labels[lost[0]]!r} can be read; add some,"
                " or remove it."
            )
    return replace(dataset, splits=dataset.splits | kept, skipped=list(skipped))


def describe_skipped(dataset, skipped):
    """What to do about files {name: why it cannot be read}, and a list of them."""
    advice = "restore them, "
    gone = list(skipped.values()).count(NO_SUCH_FILE)
    if gone and dataset.in_folders:
        advice += f"delete the rows of the missing ones ({gone}) from split.csv, "
    lines = [f"\n  {file}: {reason}" for file, reason in skipped.items()]
    return (
        f"{len(skipped)} images in {dataset.image_folder} are missing or cannot be decoded;"
        f" {advice}or leave them out with --skip-unreadable:{''.join(lines[:MAX_LISTED])}"
    )


def cached_images(dataset, name, image_size, cache):
    """Decoded images of the split called `name`, from the folder `cache`, filled first where
    needed. Returns (uint8 (n, size, size, 3), a memory map unless `cache` is "none"; {file that
    cannot be read: why}). Such a file's image is black; it is noted beside the array and tried
    again at each call."""
    split = dataset.splits[name]
    files = split.files.tolist()
    paths = [dataset.image_folder / file for file in files]
    description = f"decoding the {name} images"

    if cache == "none":
        images, bad = decode_all(paths, image_size, description)
        return images, {files[row]: reason for row, reason in bad.items()}

    key = f"{DECODING} {image_size} {files} {split.stamps.tolist()}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(cache) / f"{dataset.name}-{name}-{image_size}-{digest}.npy"
    notes = path.with_suffix(".unreadable.json")

    # rights change neither a file's size nor its time
    unreadable = [dataset.image_folder / file for file in read_unreadable(notes)]
    if path.exists() and readable_again(unreadable, image_size):
        path.unlink()  # all are decoded anew
        notes.unlink()

    def decoded(starts):
        for start in starts:
            images, bad = decode_all(paths[start : start + DECODE_BLOCK], image_size)
            if bad:  # noted before the block is written, so that no interruption can lose it
                named = {files[start + row]: reason for row, reason in bad.items()}
                write_json(notes, read_unreadable(notes) | named)
            yield images

    file = ArrayFile(path, (len(files), image_size, image_size, 3), "uint8", description)
    images = build_or_load_array(file, decoded, DECODE_BLOCK)
    return images, read_unreadable(notes)  # another process may have filled both


def read_unreadable(notes):
    """{file: why it could not be read} as `cached_images` noted it."""
    return read_json(notes) if notes.exists() else {}
