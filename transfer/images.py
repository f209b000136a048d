"""Pictures as arrays: files decoded, each once, and kept on disk."""

import contextlib
import hashlib
import os
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageOps, UnidentifiedImageError

from transfer.console import BadInput, progress
from transfer.files import ArrayFile, build_or_load_array, printable, read_json, write_json

DECODING = 2  # version of what this module makes of a file: part of the key of all that is stored
DECODE_BLOCK = 256  # images decoded between two looks at an interrupt
LARGE_PIXELS, ONE_LARGE_PICTURE = (
    2**26,
    threading.Lock(),
)  # pixels above which pictures are decoded one at a time
SHARE_OF_MEMORY = 0.1  # that one of them may take
LARGEST_VALUES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits
NO_SUCH_FILE = "there is no such file"
MAX_LISTED = 1000  # unreadable files that an error lists

warnings.filterwarnings(
    "ignore", module=r"PIL\."
)  # of large or odd pictures, which are decided on here
Image.MAX_IMAGE_PIXELS = None  # as `check_size` decides
pillow_heif.register_heif_opener()


def open_image(path, size):
    """One image file as a Pillow image in RGB, the right way up, transparent places white; of an animation
    the first picture. size: pixels a side that are needed of it. Raises OSError (UnidentifiedImageError
    among them) or ValueError where it cannot be read, is no picture, or would take too much memory."""
    with Image.open(path) as image:
        large = image.width * image.height > LARGE_PIXELS
        with ONE_LARGE_PICTURE if large else contextlib.nullcontext():
            if large:
                check_size(image, size)
            wide = "RGB" in image.mode and ";16" in str(image.tile)
            image.load()
            if wide and max(high for _, high in image.getextrema()[:3]) < 64:  # less than 15 bits
                stretch(image, path)
            image = ImageOps.exif_transpose(image)
            if image.mode[0] in "IF":  # convert() would cut off at 255
                image = Image.fromarray(as_bytes(np.asarray(image)))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")


def check_size(image, size):
    """Raise ValueError where a large picture takes too much memory, before it is decoded. A JPEG's decoder
    gives an eighth of the size as well, and reads line by line unless the file is progressive."""
    pixels, width, height = image.width * image.height, image.width, image.height
    image.draft(None, (size, size))
    needed = 4 * image.width * image.height + 6 * pixels * bool(image.info.get("progressive"))
    memory = [2**33]  # where the machine does not say
    if hasattr(os, "sysconf"):
        memory = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError, ValueError):  # of a container, "max" where it has no limit
        memory.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    limit = SHARE_OF_MEMORY * min(memory)
    if needed > limit:
        room = f"more than a tenth of this machine's memory ({limit / 1e9:.1f} GB)"
        raise ValueError(f"its {width} x {height} pixels would take {needed / 1e9:.1f} GB, {room}")


def stretch(image, path):
    """Mend a colour picture of 16-bit values, of which Pillow has kept the upper 8 bits, where a scanner
    filled 10 to 14: the lower 8 are read as well, as those of a file with the other order of bytes."""
    with Image.open(path) as again:
        swapped = {
            "L": "B",
            "B": "L",
            "N": "B",
        }  # N: the machine's own, L on all that Keras runs on
        for number, tile in enumerate(again.tile):
            mode, *rest = tile.args if isinstance(tile.args, tuple) else (tile.args,)
            mode = re.sub(";16(.)", lambda found: f";16{swapped[found[1]]}", mode)
            again.tile[number] = tile._replace(args=(mode, *rest) if rest else mode)
        low = np.asarray(again)
    pixels = np.array(image)
    pixels[..., :3] = as_bytes(pixels[..., :3].astype("uint16") * 256 + low[..., :3])
    image.paste(Image.fromarray(pixels))


def as_bytes(values):
    """Grey or colour values of any type as uint8. Their range is the smallest usual one that holds them: 1
    for floats, or 8 to 16 bits. ValueError where there is none."""
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= LARGEST_VALUES[-1]):
        raise ValueError("it has values that are negative, above 16 bits, or no numbers")
    ranges = (1.0,) * (values.dtype.kind == "f") + LARGEST_VALUES
    largest = next(largest for largest in ranges if values.max() <= largest)
    return np.rint(values * np.float32(255 / largest)).astype("uint8")


def decode_image(path, image_size):
    """One image file as uint8 (image_size, image_size, 3), resized bilinearly; errors as `open_image`."""
    image = open_image(path, image_size)
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype="uint8")


def decode_all(paths, image_size):
    """Decode `paths` on all cores: (uint8 (n, size, size, 3), {row that could not be read, left black:
    why})."""
    images = np.zeros((len(paths), image_size, image_size, 3), "uint8")

    def decode(row):
        try:
            images[row] = decode_image(paths[row], image_size)
        except FileNotFoundError:
            return row, NO_SUCH_FILE
        except UnidentifiedImageError:
            return row, "it is not a picture, or of a kind that cannot be read"
        except (
            Exception
        ) as error:  # whatever Pillow makes of a broken file, the file is what gets named
            reason = getattr(error, "strerror", None) or str(error).replace(str(paths[row]), "")
            return row, " ".join(reason.split()) or type(error).__name__
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return images, dict(filter(None, pool.map(decode, range(len(paths)))))


class Rows:
    """Some rows of an array, none of them copied."""

    def __init__(self, array, rows):
        self.array, self.rows = array, rows
        self.shape = (len(rows), *array.shape[1:])
        self.filename = getattr(array, "filename", None)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.array[self.rows[rows]]


def load_images(dataset, splits, image_size, cache="data/cache", skip_unreadable=False):
    """Decode and resize every image of `splits` once; later calls find them on disk. cache: folder for the
    decoded images, memory-mapped uint8 (n, size, size, 3) .npy files, safe to delete; or "none", which
    keeps them in memory. Returns the dataset with `images` in each of `splits`, without the rows that
    cannot be read, which `skipped` lists. BadInput names every such file, unless `skip_unreadable`."""
    kept, skipped = {}, {}
    for name in splits:
        split = dataset.splits[name]
        present = np.flatnonzero(split.stamps[:, 0] >= 0)
        key = printable("\n".join([f"{DECODING} {image_size}", *split.files[present]])).encode()
        digest = hashlib.sha256(key + split.stamps[present].tobytes()).hexdigest()[:16]
        stem = f"{dataset.name}-{name}-{image_size}-{digest}"
        paths = [str(dataset.image_folder / file) for file in split.files[present]]
        images, bad = cached_images(paths, image_size, cache, stem) if paths else (None, {})
        skipped |= dict.fromkeys(split.files[split.stamps[:, 0] < 0].tolist(), NO_SUCH_FILE)
        skipped |= {str(split.files[present[row]]): reason for row, reason in bad.items()}
        kept[name] = split.take(np.delete(present, list(bad)))._replace(images=images)
    if skipped and not skip_unreadable:
        shown = "\n".join(
            f"  {file}: {reason}" for file, reason in list(skipped.items())[:MAX_LISTED]
        )
        shown += (
            f"\n  ... and {len(skipped) - MAX_LISTED} more" if len(skipped) > MAX_LISTED else ""
        )
        bad = f"{len(skipped)} images in {dataset.image_folder} are missing or cannot be decoded"
        gone = (
            sum(reason == NO_SUCH_FILE for reason in skipped.values()) if dataset.in_folders else 0
        )
        forget = f"delete the rows of the {gone} that are gone in split.csv, " * bool(gone)
        raise BadInput(
            f"{bad}; restore them, {forget}or leave them out with --skip-unreadable:\n{shown}"
        )
    for name, split in kept.items():
        lost = set(dataset.splits[name].labels.tolist()) - set(split.labels.tolist())
        if lost:
            label = dataset.labels[min(lost)]
            raise BadInput(
                f"No {name} image of the class {label!r} can be read; add some, or remove it."
            )
    return replace(dataset, splits={**dataset.splits, **kept}, skipped=list(skipped))


def cached_images(paths, image_size, cache, stem):
    """Decoded images of `paths` from the folder `cache`, filled first where needed. Returns (memory map
    uint8 (n_readable, size, size, 3), or what indexes like one; {row of `paths` that cannot be read: why}:
    those are black on disk and noted beside it, and tried again at each call)."""
    shape = (len(paths), image_size, image_size, 3)
    file = ArrayFile(Path(cache) / f"{stem}.npy", shape, "uint8", f"decoding {stem}")
    notes = file.path.with_suffix(".unreadable.json")
    bad = {int(row): reason for row, reason in read_json(notes).items()} if notes.exists() else {}
    again = decode_all([paths[row] for row in bad], image_size)[1] if file.path.exists() else bad
    if len(again) < len(bad):  # their rights or Pillow have changed: all are decoded anew
        file.path.unlink()
        notes.unlink()
        bad = {}

    def decoded(starts):
        for start in starts:
            images, found = decode_all(paths[start : start + DECODE_BLOCK], image_size)
            bad.update({start + row: reason for row, reason in found.items()})
            if found and cache != "none":  # before the block, so that no interruption can lose it
                write_json(notes, bad)
            yield images

    if cache == "none":
        starts = progress(range(0, len(paths), DECODE_BLOCK), file.description)
        images = np.concatenate(list(decoded(starts)))
    else:
        images = build_or_load_array(file, decoded, DECODE_BLOCK)
    return Rows(images, np.delete(np.arange(len(images)), sorted(bad))) if bad else images, bad
