"""Pictures as arrays: files decoded, each once, and kept on disk."""

import contextlib
import functools
import hashlib
import io
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from transfer.console import BadInput, progress
from transfer.files import ArrayFile, Rows, build_or_load_array, read_json, write_json
from transfer.flags import DEFAULT_CACHE

DECODING = 4  # version of what this module makes of a file: part of the key of all that is stored
DECODE_BLOCK = 256  # images decoded and written at once
LARGE_PIXELS = 2**26  # above which a picture is reduced, or refused where memory is short
LARGEST_VALUES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
NO_SUCH_FILE = "there is no such file"
MAX_LISTED = 1000  # unreadable files that an error lists, of all those that it counts
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # in bytes, or "max"

being_decoded = []  # bytes that each of the pictures takes that threads work on
decoding_ends = threading.Condition()
warnings.filterwarnings("ignore", module=r"PIL\.")  # of large or odd pictures, decided on here
Image.MAX_IMAGE_PIXELS = None  # as `memory_for` decides
# a chunk of a PNG's metadata may be as large as all of them together
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
pillow_heif.register_heif_opener()


def read_image(path, size, shrink):
    """One image file as a Pillow image in RGB (sRGB, where it has a colour profile), the right way
    up, transparent places white; of an animation the first picture. size: pixels a side that are
    needed of it. shrink(image) -> the image that is returned, before its colours are converted.
    Raises OSError (UnidentifiedImageError among them) or ValueError where it cannot be read, is no
    picture, or would take too much memory."""
    with Image.open(path) as image, memory_for(image, size):
        image.load()

        # damaged metadata fail in many ways, none of which matters: it stays as it lies
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)

        # what its values mean: grey (L), inks of a printer (CMYK), else RGB
        mode = Image.getmodebase(image.mode).replace("P", "RGB")
        if image.mode == "CMYK":
            mode = "CMYK"
        mode, transform = srgb_transform(image.info.get("icc_profile"), mode)

        # grey of more than 8 bits, and floats: convert() would cut them off at 255
        if image.mode[0] in "IF":
            image = Image.fromarray(as_bytes(np.asarray(image)))

        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)

        # convert() would copy what is in that mode already
        if image.mode != mode:
            image = image.convert(mode)
        image = shrink(image)
        return transform.apply(image) if transform else image


@functools.lru_cache(32)  # a collection has few profiles, and each takes milliseconds
def srgb_transform(profile, mode):
    """How the colours of an image with the ICC profile `profile` (bytes, or None) become sRGB's:
    (mode that it is in before, transform to RGB). The transform is None where there is nothing to
    do: no profile, a damaged one, or one of another kind of image than `mode` (L, RGB or CMYK).
    Threads may share it: LittleCMS keeps nothing in it between two calls."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (OSError, ImageCms.PyCMSError):
        return "RGB", None
    return mode, transform


@contextlib.contextmanager
def memory_for(image, size):
    """Within it, an image that was opened may be decoded: as many at once as fit into a tenth of
    the memory, or one. size: pixels a side that are needed of it. Raises ValueError where a large
    one does not fit. A JPEG's decoder gives an eighth of the size as well, and reads line by line
    unless the file is progressive."""
    width, height = image.size
    large = width * height > LARGE_PIXELS
    if large:
        image.draft(None, (size, size))
    needed = 4 * image.width * image.height
    if image.info.get("progressive"):
        needed += 6 * width * height

    limit = memory_limit() / 10
    if large and needed > limit:
        raise ValueError(
            f"its {width} x {height} pixels would take {needed / 1e9:.1f} GB, more than a tenth of"
            f" this machine's memory ({limit / 1e9:.1f} GB)"
        )
    with decoding_ends:
        decoding_ends.wait_for(lambda: not being_decoded or sum(being_decoded) + needed <= limit)
        being_decoded.append(needed)
    try:
        yield
    finally:
        with decoding_ends:
            being_decoded.remove(needed)
            decoding_ends.notify_all()


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
    `read_image`."""

    def shrink(image):
        return image.resize((image_size, image_size), Image.Resampling.BILINEAR)

    return np.asarray(read_image(path, image_size, shrink))


def decode_all(paths, image_size, description=None):
    """Decode `paths` on all cores that this process may use. description: what is shown of the
    progress; nothing without it. Returns (uint8 (n, size, size, 3), {row that could not be read,
    left black: why})."""
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

    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        reasons = pool.map(decode, range(len(paths)))
        if description:
            reasons = progress(reasons, description, len(paths), " images")
        return images, {row: reason for row, reason in enumerate(reasons) if reason}


def load_images(dataset, splits, image_size, cache=DEFAULT_CACHE, skip_unreadable=False):
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
    cannot be read: why}). Such a file's image is black; it is noted beside the array, whose name
    has the digests of all files: one that can be read by now has another."""
    split = dataset.splits[name]
    files = split.files.tolist()
    paths = [dataset.image_folder / file for file in files]
    description = f"decoding the {name} images"

    if cache == "none":
        images, bad = decode_all(paths, image_size, description)
        return images, {files[row]: reason for row, reason in bad.items()}

    key = f"{DECODING} {image_size} {files} {split.digests.tolist()}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = Path(cache) / f"{dataset.name}-{name}-{image_size}-{digest}.npy"
    notes = path.with_suffix(".unreadable.json")

    def decoded(starts):
        for start in starts:
            images, bad = decode_all(paths[start : start + DECODE_BLOCK], image_size)
            if bad:  # noted before the block is written, so that no interruption can lose it
                named = {files[start + row]: reason for row, reason in bad.items()}
                write_json(notes, read_json(notes, {}) | named)
            yield images

    file = ArrayFile(path, (len(files), image_size, image_size, 3), "uint8", description)
    images = build_or_load_array(file, decoded, DECODE_BLOCK)
    return images, read_json(notes, {})  # another process may have filled both
