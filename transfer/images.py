"""Pictures as arrays: files decoded, each once, and kept on disk."""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from transfer.screen import BadInput, progress
from transfer.store import ArrayFile, make_array, read_json, write_json

DECODE_BLOCK = 256  # images decoded between two looks at an interrupt
MOST_PIXELS = 2**26  # 67 megapixels, 0.2 GB decoded: a decompression bomb, not a photograph
NAMED = 1000  # unreadable files that an error lists

warnings.filterwarnings("ignore", module=r"PIL\.")  # of large or odd pictures, which are decided on here


def open_image(path):
    """One image file as a Pillow image in RGB, the right way up. Of an animation the first picture is
    taken. Raises OSError (PIL.UnidentifiedImageError among them) or ValueError where the file cannot be
    read, or is so large that decoding it could fill the memory."""
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
    image = open_image(path)
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
            return row, "there is no such file"
        except UnidentifiedImageError:
            return row, "it is not a picture, or of a kind that cannot be read"
        except Exception as error:  # whatever Pillow makes of a broken file, the file is what gets named
            reason = " ".join(str(error).replace(str(paths[row]), "").split())
            return row, reason or type(error).__name__
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
    decoded images, memory-mapped uint8 (n, size, size, 3) .npy files, keyed by names, sizes and times of
    the files and the image size, safe to delete; or "none", which keeps them in memory. Returns the dataset
    with `images` in each of `splits`, without the rows that cannot be read, whose files its `skipped`
    lists. Raises BadInput that names every such file, unless `skip_unreadable`."""
    kept, skipped = {}, []
    for name in splits:
        split = dataset.splits[name]
        present = np.flatnonzero(split.stamps[:, 0] >= 0)
        key = "\n".join([f"all rows, bilinear {image_size}", *split.files[present]]).encode()
        digest = hashlib.sha256(key + split.stamps[present].tobytes()).hexdigest()[:16]
        stem = f"{dataset.name}-{name}-{image_size}-{digest}"
        paths = [str(dataset.image_folder / file) for file in split.files[present]]
        images, bad = cached_images(paths, image_size, cache, stem) if paths else (None, [])
        readable = np.delete(present, bad)
        skipped += np.delete(split.files, readable).tolist()
        kept[name] = split.take(readable)._replace(images=images)
    if skipped and not skip_unreadable:
        shown = "\n".join(f"  {file}" for file in skipped[:NAMED])
        shown += f"\n  ... and {len(skipped) - NAMED} more" if len(skipped) > NAMED else ""
        bad = f"{len(skipped)} images in {dataset.image_folder} are missing or cannot be decoded"
        raise BadInput(f"{bad}; restore them, or leave them out with --skip-unreadable:\n{shown}")
    for name, split in kept.items():
        if not len(split.files):
            raise BadInput(f"No image of the {name} split in {dataset.image_folder} can be read.")
    return replace(dataset, splits={**dataset.splits, **kept}, skipped=skipped)


def cached_images(paths, image_size, cache, stem):
    """Decoded images of `paths` from the folder `cache`, filled first where needed. Returns (memory map
    uint8 (n_readable, size, size, 3), or what indexes like one; rows of `paths` that cannot be read: those
    are black on disk, and noted beside it)."""
    notes = Path(cache) / f"{stem}.unreadable.json"
    bad = set(read_json(notes)) if notes.exists() else set()

    def decoded(starts):
        for start in starts:
            images, found = decode_all(paths[start : start + DECODE_BLOCK], image_size)
            bad.update(start + row for row in found)
            if found and cache != "none":  # before the block, so that no interruption can lose it
                write_json(notes, sorted(bad))
            yield images

    if cache == "none":
        starts = progress(range(0, len(paths), DECODE_BLOCK), f"decoding {stem}")
        images = np.concatenate(list(decoded(starts)))
    else:
        shape = (len(paths), image_size, image_size, 3)
        file = ArrayFile(Path(cache) / f"{stem}.npy", shape, "uint8", f"decoding {stem}")
        images = make_array(file, decoded, DECODE_BLOCK)
    bad = sorted(bad)
    return Rows(images, np.delete(np.arange(len(images)), bad)) if bad else images, bad
