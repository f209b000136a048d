"""A dataset: its metadata, checked, and its images, each decoded once. In MAMe's layout:

    DIR/data_256/<Image file>        the images
    DIR/MAMe_dataset.csv             one row an image: file, medium, museum, split
    DIR/MAMe_labels.csv              index, medium; the order of the classes
    DIR/defaults.json                optional: the dataset's own settings (image size, weights ...)

The two CSV files may also lie in DIR/MAMe_metadata/, as MAMe's archive unpacks them. One's own pictures
may lie in folders named after their classes instead (folders.py).
"""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from files import BadInput, make_array, progress, read_csv, read_json, write_json
from folders import SPLITS, is_in_folders, read_folders

DECODE_BLOCK = 256  # images decoded between two looks at an interrupt
MOST_PIXELS = 2**26  # 67 megapixels, 0.2 GB decoded: a decompression bomb, not a photograph
DEFAULT_DATA = Path("data/mame")
DEMO_DATA = Path("data/demo")
COLUMNS = ("Image file", "Medium", "Museum", "Subset")
MEND_CSV = "fetch it again with get_data.py"
MAME_DEFAULTS = {
    "name": "mame",
    "image_size": 224,
    "weights": "imagenet",
    "batch_size": 32,
    "learning_rate": 1e-4,
    "fine_tune_learning_rate": 1e-5,
    "pretrain_learning_rate": 1e-4,
    "epochs": 100,
    "fine_tune_epochs": 100,
    "pretrain_epochs": 100,
    "notice": None,
}


class Split(NamedTuple):
    """The rows of one split, in the metadata's order."""

    files: np.ndarray  # (n,) str, names in Dataset.image_folder
    labels: np.ndarray  # (n,) int64, index in Dataset.labels
    museums: np.ndarray  # (n,) str, empty where nothing is known
    stamps: np.ndarray  # (n, 2) int64: size in bytes (-1 where missing), time of change in ns

    def take(self, rows):
        return Split(*(column[rows] for column in self))


@dataclass(frozen=True)
class Dataset:
    """What a dataset's folder says of its pictures, which lie in `image_folder`."""

    root: Path
    image_folder: Path
    labels: list  # names of the classes in the official order
    splits: dict  # split name -> Split
    defaults: dict

    @property
    def name(self):
        return self.defaults["name"]

    @property
    def in_folders(self):
        """Whether these are one's own pictures in folders: no museums, and no row of the study's."""
        return self.image_folder == self.root

    def study_cell(self, figure):
        """A figure of the study's as cells of a table: none where the study says nothing of the data."""
        return () if self.in_folders else (figure,)

    @property
    def notice(self):
        """The sentence that every output carries, or None where the data is real."""
        return self.defaults["notice"]

    @property
    def fingerprint(self):
        """sha256 over split, file name, class and size in bytes of every row."""
        digest = hashlib.sha256(json.dumps(self.labels).encode())
        for name, split in self.splits.items():
            for file, label, (size, _) in zip(split.files, split.labels, split.stamps):
                digest.update(f"{name}\t{file}\t{label}\t{size}\n".encode())
        return digest.hexdigest()


def load_dataset(data, seed=0):
    """Read the dataset in folder `data`; None means data/mame, or the demo where that is absent.

    seed: of the split of folders that have none yet (`folders.read_folders`).
    Returns a Dataset. Raises BadInput for a folder, CSV file or row that cannot be used.
    Images are not opened here; `load_images` does that.
    """
    if data is None:
        data = DEFAULT_DATA if DEFAULT_DATA.exists() else demo_dataset()
    root = Path(data)
    if not root.is_dir():
        raise BadInput(
            f"There is no dataset folder {root}; name another with --data, "
            f"or make one with `python get_data.py mame --data {root}`."
        )
    if is_in_folders(root):
        labels, rows = read_folders(root, seed)
        rows = {
            split: [(file, n, "", stamp) for file, n, stamp in of_split] for split, of_split in rows.items()
        }
        image_folder, name = root, root.absolute().name or "pictures"
    else:
        image_folder, name = root / "data_256", MAME_DEFAULTS["name"]
        labels = read_labels(find_metadata(root, "MAMe_labels.csv"))
        rows = read_rows(find_metadata(root, "MAMe_dataset.csv"), labels, image_folder)
    splits = {split: as_split(of_split) for split, of_split in rows.items()}
    return Dataset(root, image_folder, labels, splits, read_defaults(root, name))


def demo_dataset():
    """Folder of the demo dataset, drawn first where it is not there yet."""
    print(
        f"There is no MAMe in {DEFAULT_DATA}: the demo dataset in {DEMO_DATA} is used instead.\n"
        "For MAMe itself: python get_data.py mame",
        flush=True,
    )
    if not DEMO_DATA.exists():
        script = Path(__file__).with_name("get_data.py")
        command = [sys.executable, str(script), "demo", "--data", str(DEMO_DATA)]
        # with status 2 another command may have drawn it in the meantime
        if subprocess.run(command).returncode and not DEMO_DATA.exists():
            raise BadInput(f"The demo dataset could not be drawn in {DEMO_DATA} (see above).")
    return DEMO_DATA


def find_metadata(root, name):
    """Path of a metadata file in `root` or `root`/MAMe_metadata; BadInput where there is none."""
    for path in (root / name, root / "MAMe_metadata" / name):
        if path.is_file():
            return path
    raise BadInput(
        f"{root} has no {name}, neither directly nor in MAMe_metadata/; "
        "`python get_data.py mame` fetches it."
    )


def read_labels(path):
    """Class names in the official order, from rows `index,medium` (no header)."""
    names = {}
    for number, row in enumerate(read_csv(path, MEND_CSV), 1):
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise BadInput(f"{path}, row {number}: expected 'index,medium', found {','.join(row)!r}.")
        names[int(row[0])] = row[1].strip()
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        raise BadInput(f"{path} must number its mediums 0, 1, 2 ... without a gap or a repetition.")
    if len(names) < 2:
        raise BadInput(f"{path} names {len(names)} mediums; a classifier needs two or more.")
    return [names[index] for index in range(len(names))]


def read_rows(path, labels, image_folder):
    """{split: [(file, class index, museum, stamp)]} of MAMe_dataset.csv, rows in the file's order.

    The CSV writes 'Woven fabric ' with a trailing space where the label file has none:
    every cell is stripped before it is compared.
    """
    header, *rows = read_csv(path, MEND_CSV) or [[]]
    header = [cell.strip() for cell in header]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise BadInput(f"{path} lacks the column {missing[0]!r}; its header is {header}.")
    index_of = {label: index for index, label in enumerate(labels)}
    columns = [header.index(column) for column in COLUMNS]
    stamps = scan_files(image_folder)
    seen, splits = set(), {split: [] for split in SPLITS}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise BadInput(f"{path}, row {number}: {len(row)} cells where the header has {len(header)}.")
        file, medium, museum, split = (row[column].strip() for column in columns)
        if not file or file in (".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise BadInput(f"{path}, row {number}: {file!r} is not the name of a file in {image_folder}.")
        if medium not in index_of:
            raise BadInput(f"{path}, row {number}: the medium {medium!r} is not in the label file.")
        if split not in SPLITS:
            raise BadInput(f"{path}, row {number}: the subset {split!r} is none of {SPLITS}.")
        if file in seen:
            raise BadInput(f"{path}, row {number}: {file!r} is listed twice; each file needs one row.")
        seen.add(file)
        splits[split].append((file, index_of[medium], museum, stamps.get(file, (-1, 0))))
    for split, rows_of_split in splits.items():
        if not rows_of_split:
            raise BadInput(f"{path} has no row of the subset {split!r}.")
    return splits


def as_split(rows):
    files, labels, museums, stamps = zip(*rows)
    return Split(np.array(files), np.array(labels, "int64"), np.array(museums), np.array(stamps, "int64"))


def scan_files(folder):
    """Dict from the name of each file in `folder` to (size in bytes, time of change in ns)."""
    if not folder.is_dir():
        raise BadInput(
            f"There is no image folder {folder}; `python get_data.py mame` fetches MAMe's images."
        )
    stamps = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                status = entry.stat()
                stamps[entry.name] = (status.st_size, status.st_mtime_ns)
            except OSError:  # a link to nowhere or in a loop: as good as missing
                continue
    return stamps


def read_defaults(root, name):
    """MAMe's settings under the dataset's `name`, overridden by `root`/defaults.json where there is one."""
    path, defaults = root / "defaults.json", {**MAME_DEFAULTS, "name": name}
    if not path.exists():
        return defaults
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); mend or delete it.") from None
    unknown = set(own) - set(MAME_DEFAULTS) if isinstance(own, dict) else {"(not an object)"}
    if unknown:
        raise BadInput(f"{path}: unknown setting {min(unknown)!r}; known: {list(MAME_DEFAULTS)}.")
    for key, value in own.items():
        known = MAME_DEFAULTS[key]
        if value is None and known is None:
            continue
        kind = str if known is None or isinstance(known, str) else type(known)
        if not isinstance(value, (kind, int) if kind is float else kind) or value is True:
            raise BadInput(f"{path}: {key} must be of type {kind.__name__}, not {value!r}.")
        if kind is not str and not 0 < value < 2**31:
            raise BadInput(f"{path}: {key} must be above 0, not {value!r}.")
    return {**defaults, **own}


def supports(dataset, split):
    """{class name: number of images} of one split, in the official order."""
    counts = np.bincount(dataset.splits[split].labels, minlength=len(dataset.labels))
    return dict(zip(dataset.labels, counts.tolist()))


# Images ----------------------------------------------------------------------------------


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


class ImagesOnDemand:
    """Stands in for the array of decoded images where nothing is to be kept on disk."""

    def __init__(self, paths, image_size):
        self.paths = paths
        self.shape = (len(self.paths), image_size, image_size, 3)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, rows):
        return np.stack([decode_image(path, self.shape[1]) for path in self.paths[rows]])


def load_images(dataset, splits, image_size, cache="data/cache", skip_unreadable=False):
    """Decode and resize every image of `splits` once; later calls find them on disk.

    cache: folder for the decoded images, memory-mapped uint8 (n, size, size, 3) .npy files,
    keyed by names, sizes and times of the files and the image size, safe to delete; or "none",
    which decodes anew each time a batch is drawn.

    Returns (dataset, images, skipped): images maps each split to its array, rows as in
    dataset.splits; skipped lists the files left out. Raises BadInput that names every file that
    is missing or cannot be decoded, unless `skip_unreadable`.
    """
    images, kept, skipped = {}, {}, []
    for name in splits:
        split = dataset.splits[name]
        present = split.stamps[:, 0] >= 0
        paths = [str(dataset.image_folder / file) for file in split.files[present]]
        if not paths:
            bad = []
        elif cache == "none":
            bad = check_images(paths, image_size, f"checking {name} images")
            images[name] = ImagesOnDemand(np.delete(paths, bad), image_size)
        else:
            stem = f"{dataset.name}-{name}-{image_size}-{images_key(split.take(present), image_size)}"
            images[name], bad = cached_images(paths, image_size, Path(cache), stem)
        readable = np.flatnonzero(present)
        readable = np.delete(readable, bad)
        skipped += np.delete(split.files, readable).tolist()
        kept[name] = split.take(readable)
    if skipped and not skip_unreadable:
        shown = "\n".join(f"  {file}" for file in skipped[:1000])
        shown += f"\n  ... and {len(skipped) - 1000} more" if len(skipped) > 1000 else ""
        raise BadInput(
            f"{len(skipped)} images in {dataset.image_folder} are missing or cannot be decoded; "
            f"restore them, or go on without them by --skip-unreadable:\n{shown}"
        )
    for name, split in kept.items():
        if not len(split.files):
            raise BadInput(f"No image of the {name} split in {dataset.image_folder} can be read.")
    return replace(dataset, splits={**dataset.splits, **kept}), images, skipped


def images_key(split, image_size):
    """What determines the decoded images of one split, as a short digest."""
    digest = hashlib.sha256(f"all rows, bilinear {image_size}\n".encode())
    digest.update("\n".join(split.files).encode() + split.stamps.tobytes())
    return digest.hexdigest()[:16]


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
    images = make_array(cache / f"{stem}.npy", shape, "uint8", produce, DECODE_BLOCK, f"decoding {stem}")
    bad = read_json(notes) if notes.exists() else []
    return ReadableImages(images, bad) if bad else images, bad


def decode_all(paths, image_size, array):
    """Decode `paths` on all cores into `array` (or only to see that it works, where None).

    Returns the rows that could not be read.
    """

    def decode(row):
        try:
            image = decode_image(paths[row], image_size)
        except Exception:  # whatever Pillow makes of a broken file, the file is what gets named
            return row
        if array is not None:
            array[row] = image
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for row in pool.map(decode, range(len(paths))) if row is not None]


def check_images(paths, image_size, description):
    """Decode all `paths` and keep nothing; returns the rows that could not be read."""
    bad = []
    for start in progress(range(0, len(paths), DECODE_BLOCK), description):
        found = decode_all(paths[start : start + DECODE_BLOCK], image_size, None)
        bad += [start + row for row in found]
    return bad
