"""Pictures as arrays: files decoded, each once, and kept on disk."""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from transfer.files import ArrayFile, make_array, read_json, write_json
from transfer.screen import BadInput, progress

DECODE_BLOCK = 256  # images decoded between two looks at an interrupt
MOST_PIXELS = 2**26  # 67 megapixels, 0.2 GB decoded: a decompression bomb, not a photograph
NAMED = 1000  # unreadable files that an error lists

warnings.filterwarnings("ignore", module=r"PIL\.")  # of large or odd pictures, which are decided on here


def file_stamp(entry):
    """(size in bytes, time of change in ns) of a Path or os.DirEntry; (-1, 0) where it is missing."""
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere or in a loop: as good as missing
        return -1, 0
    return status.st_size, status.st_mtime_ns


def open_image(path):
    """One image file as a Pillow image in RGB, the right way up.

    Of an animation the first picture is taken. Raises OSError (PIL.UnidentifiedImageError among them)
    or ValueError where the file cannot be read, or is so large that decoding it could fill the memory.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.load()
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype("uint8"))
    return image.convert("RGB")


def decode_image(path, image_size):
    """One image file as uint8 (image_size, image_size, 3), resized bilinearly; errors as `open_image`."""
    from PIL import Image

    image = open_image(path)
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype="uint8")


def decode_all(paths, image_size, array=None):
    """Decode `paths` on all cores into `array` (or only to see that it works, where None).

    Returns {row: why it could not be read}.
    """

    def decode(row):
        try:
            image = decode_image(paths[row], image_size)
        except Exception as error:  # whatever Pillow makes of a broken file, the file is what gets named
            return row, why_unreadable(paths[row], error)
        if array is not None:
            array[row] = image
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(filter(None, pool.map(decode, range(len(paths)))))


def why_unreadable(path, error):
    """What decoding a file ended with, in one line."""
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture, or of a kind that cannot be read"
    return " ".join(str(error).replace(str(path), "").split()) or type(error).__name__


class ImagesOnDemand:
    """Stands in for the array of decoded images where nothing is to be kept on disk."""

    def __init__(self, paths, image_size):
        self.paths = paths
        self.shape = (len(self.paths), image_size, image_size, 3)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, rows):
        return np.stack([decode_image(path, self.shape[1]) for path in self.paths[rows]])


class ReadableImages:
    """The rows of an array of decoded images but those of unreadable files."""

    def __init__(self, array, unreadable):
        self.array = array
        self.kept = np.delete(np.arange(len(array)), unreadable)
        self.shape = (len(self.kept), *array.shape[1:])
        self.filename = array.filename

    def __len__(self):
        return len(self.kept)

    def __getitem__(self, rows):
        return self.array[self.kept[rows]]


def load_images(dataset, splits, image_size, cache="data/cache", skip_unreadable=False):
    """Decode and resize every image of `splits` once; later calls find them on disk.

    cache: folder for the decoded images, memory-mapped uint8 (n, size, size, 3) .npy files,
    keyed by names, sizes and times of the files and the image size, safe to delete; or "none",
    which decodes anew each time a batch is drawn.

    Returns the dataset with `images` in each of `splits`, without the rows that cannot be read, whose
    files its `skipped` lists. Raises BadInput that names every such file, unless `skip_unreadable`.
    """
    kept, skipped = {}, []
    for name in splits:
        split = dataset.splits[name]
        present = np.flatnonzero(split.stamps[:, 0] >= 0)
        paths = np.array([str(dataset.image_folder / file) for file in split.files[present]])
        if not len(paths):
            images, bad = None, []
        elif cache == "none":
            bad = check_images(paths, image_size, f"checking {name} images")
            images = ImagesOnDemand(np.delete(paths, bad), image_size)
        else:
            stem = f"{dataset.name}-{name}-{image_size}-{images_key(split.take(present), image_size)}"
            images, bad = cached_images(paths, image_size, Path(cache), stem)
        readable = np.delete(present, bad)
        skipped += np.delete(split.files, readable).tolist()
        kept[name] = split.take(readable)._replace(images=images)
    if skipped and not skip_unreadable:
        shown = "\n".join(f"  {file}" for file in skipped[:NAMED])
        shown += f"\n  ... and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        raise BadInput(
            f"{len(skipped)} images in {dataset.image_folder} are missing or cannot be decoded; "
            f"restore them, or go on without them by --skip-unreadable:\n{shown}"
        )
    for name, split in kept.items():
        if not len(split.files):
            raise BadInput(f"No image of the {name} split in {dataset.image_folder} can be read.")
    return replace(dataset, splits={**dataset.splits, **kept}, skipped=skipped)


def images_key(split, image_size):
    """What determines the decoded images of one split, as a short digest."""
    digest = hashlib.sha256(f"all rows, bilinear {image_size}\n".encode())
    digest.update("\n".join(split.files).encode() + split.stamps.tobytes())
    return digest.hexdigest()[:16]


def cached_images(paths, image_size, cache, stem):
    """Decoded images of `paths` from the folder `cache`, filled first where needed.

    Returns (memory map uint8 (n_readable, size, size, 3), or what indexes like one; rows of `paths`
    that cannot be read: those are black on disk, and noted beside it).
    """
    notes = cache / f"{stem}.unreadable.json"

    def produce(start, stop):
        rows = np.zeros((stop - start, image_size, image_size, 3), "uint8")
        found = decode_all(paths[start:stop], image_size, rows)
        if found:  # noted before the block is written, so that no interruption can lose it
            known = read_json(notes) if notes.exists() else []
            write_json(notes, sorted({*known, *(start + row for row in found)}))
        return rows

    shape = (len(paths), image_size, image_size, 3)
    file = ArrayFile(cache / f"{stem}.npy", shape, "uint8", f"decoding {stem}")
    images = make_array(file, produce, DECODE_BLOCK)
    bad = read_json(notes) if notes.exists() else []
    return ReadableImages(images, bad) if bad else images, bad


def check_images(paths, image_size, description):
    """Decode all `paths` and keep nothing; returns the rows that could not be read."""
    bad = []
    for start in progress(range(0, len(paths), DECODE_BLOCK), description):
        bad += [start + row for row in decode_all(paths[start : start + DECODE_BLOCK], image_size)]
    return bad
