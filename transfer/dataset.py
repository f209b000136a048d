"""A dataset: its metadata, checked. In MAMe's layout:

    DIR/data_256/<Image file>        the images
    DIR/MAMe_dataset.csv             one row an image: file, medium, museum, split
    DIR/MAMe_labels.csv              index, medium; the order of the classes
    DIR/defaults.json                optional: the dataset's own settings (image size, weights ...)

The two CSV files may also lie in DIR/MAMe_metadata/, as MAMe's archive unpacks them. One's own pictures
may lie in folders named after their classes instead (folders.py).
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.demo import write_demo
from transfer.files import read_csv
from transfer.folders import SPLITS, is_in_folders, read_folders
from transfer.images import file_stamp
from transfer.screen import BadInput

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
    images: np.ndarray = None  # (n, size, size, 3) uint8, once `images.load_images` has decoded them

    def take(self, rows):
        """The given rows, without images."""
        return Split(*(column[rows] for column in self[:4]))


@dataclass(frozen=True)
class Dataset:
    """What a dataset's folder says of its pictures, which lie in `image_folder`."""

    root: Path
    image_folder: Path
    labels: list  # names of the classes in the official order
    splits: dict  # split name -> Split
    defaults: dict
    fingerprint: str  # of the metadata, whatever of it can be read: see `fingerprint_of`
    skipped: list = ()  # files that could not be read and were left out

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


def load_dataset(data, seed=0):
    """Read the dataset in folder `data`; None means data/mame, or the demo where that is absent.

    seed: of the split of folders that have none yet (`folders.read_folders`).
    Returns a Dataset. Raises BadInput for a folder, CSV file or row that cannot be used.
    Images are not opened here; `images.load_images` does that.
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
    fingerprint = fingerprint_of(labels, splits)
    return Dataset(root, image_folder, labels, splits, read_defaults(root, name), fingerprint)


def fingerprint_of(labels, splits):
    """sha256 over split, file name, class and size in bytes of every row."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name, split in splits.items():
        for file, label, (size, _) in zip(split.files, split.labels, split.stamps):
            digest.update(f"{name}\t{file}\t{label}\t{size}\n".encode())
    return digest.hexdigest()


def demo_dataset():
    """Folder of the demo dataset, drawn first where it is not there yet."""
    print(
        f"There is no MAMe in {DEFAULT_DATA}: the demo dataset in {DEMO_DATA} is used instead.\n"
        "For MAMe itself: python get_data.py mame",
        flush=True,
    )
    if not DEMO_DATA.exists():
        with contextlib.suppress(BadInput):  # another command has just drawn it
            write_demo(DEMO_DATA)
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
    with os.scandir(folder) as entries:
        return {entry.name: file_stamp(entry) for entry in entries}


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
