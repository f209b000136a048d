"""A dataset: its files, labels and splits, checked. In MAMe's layout:

    DIR/data_256/<Image file>        the images
    DIR/MAMe_dataset.csv             one row an image: file, medium, museum, split
    DIR/MAMe_labels.csv              index, medium; the order of the classes
    DIR/defaults.json                optional: the demo's own settings (image size, weights ...)

The two CSV files may also lie in DIR/MAMe_metadata/, as MAMe's archive unpacks them. Or your own pictures,
in folders named after their classes, and folders below those as you like:

    DIR/{train,val,test}/CLASS/*     split by hand
    DIR/CLASS/*                      split at first use, class by class, as DIR/split.csv records
    DIR/CLASS/OBJECT/*               several views of one object, which stay in one split, as copies do

Passed over: names that begin with a dot or '__', runs of these scripts, files that are no pictures by name.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.console import BadInput
from transfer.demo import write_demo
from transfer.files import read_csv, read_json, short_name
from transfer.folders import SPLIT_NAMES, file_stamp, read_folders, same_name
from transfer.images import DECODING
from transfer.recipes import DEFAULTS
from transfer.study import SPLITS

DEFAULT_DATA = Path("data/mame")
DEMO_DATA = Path("data/demo")
MAME_COLUMNS = ("Image file", "Medium", "Museum", "Subset")
MAME_NAMES = ("data_256", "MAMe_metadata", "MAMe_dataset.csv", "MAMe_labels.csv")


class Split(NamedTuple):
    """The rows of one split, in the metadata's order."""

    files: np.ndarray  # (n,) str, names in Dataset.image_folder
    labels: np.ndarray  # (n,) int64, index in Dataset.labels
    museums: np.ndarray  # (n,) str, empty where nothing is known
    stamps: np.ndarray  # (n, 2) int64: size in bytes (-1 where missing), time of change in ns
    images: np.ndarray = (
        None  # (n, size, size, 3) uint8, once `images.load_images` has decoded them
    )

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
    fingerprint: str  # of the metadata, whichever images can be read: see `fingerprint_of`
    content_key: (
        str  # that, the files' times and the rules of decoding: the key of what is stored of them
    )
    skipped: list = ()  # files that could not be read and were left out

    @property
    def name(self):
        return self.defaults["name"]

    @property
    def notice(self):
        """The sentence that every output carries, or None where the data is real."""
        return self.defaults["notice"]

    @property
    def in_folders(self):
        """Whether these are one's own pictures in folders: no museums, and no row of the study's."""
        return self.image_folder == self.root

    def study_cell(self, figure):
        """A figure of the study's as cells of a table: none where the study says nothing of the data."""
        return () if self.in_folders else (figure,)


def load_dataset(data, seed=0):
    """Read the dataset in folder `data`; None means data/mame, or the demo where that is missing. seed: of
    the split of folders that have none yet. Returns a Dataset. BadInput for what cannot be used."""
    root = Path(data or (DEFAULT_DATA if DEFAULT_DATA.exists() else DEMO_DATA))
    if data is None and root == DEMO_DATA:
        print(
            f"There is no MAMe in {DEFAULT_DATA} (see get_data.py), so the demo is used.",
            flush=True,
        )
        if not root.exists():
            with contextlib.suppress(BadInput):  # another command has just drawn it
                write_demo(root)
    if not root.is_dir():
        raise BadInput(
            f"There is no dataset folder {root}; name another, or `python get_data.py mame`."
        )
    if any((root / name).exists() for name in MAME_NAMES):
        image_folder, path = root / "data_256", root / "defaults.json"
        own = read_json(path) if path.exists() else {}  # the demo has one
        if not isinstance(own, dict) or not set(own) <= set(DEFAULTS):
            raise BadInput(f"{path} may hold these settings and no others: {', '.join(DEFAULTS)}.")
        defaults = DEFAULTS | own
        metadata = root if (root / "MAMe_dataset.csv").exists() else root / "MAMe_metadata"
        labels = read_labels(metadata / "MAMe_labels.csv")
        rows = read_rows(metadata / "MAMe_dataset.csv", labels, image_folder)
    else:
        image_folder = root
        defaults = DEFAULTS | {"name": short_name(root.absolute().name) or "pictures"}
        labels, rows = read_folders(root, seed)
    splits = {split: Split(*map(np.array, zip(*of_split))) for split, of_split in rows.items()}
    fingerprint = fingerprint_of(labels, splits)
    key = [f"{DECODING} {fingerprint}".encode(), *(split.stamps for split in splits.values())]
    content_key = hashlib.sha256(b"".join(key)).hexdigest()
    return Dataset(root, image_folder, labels, splits, defaults, fingerprint, content_key)


def fingerprint_of(labels, splits):
    """sha256 over split, file name, class and size in bytes of every row."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name, split in splits.items():
        for file, label, (size, _) in zip(split.files, split.labels, split.stamps):
            digest.update(f"{name}\t{same_name(file)}\t{label}\t{size}\n".encode())
    return digest.hexdigest()


def read_labels(path):
    """Class names in the official order, from rows `index,medium` (no header)."""
    names = {}
    for number, row in enumerate(read_csv(path, "fetch it again with get_data.py"), 1):
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise BadInput(
                f"{path}, row {number}: expected 'index,medium', found {','.join(row)!r}."
            )
        names[int(row[0])] = row[1].strip()
    if sorted(names) != list(range(max(2, len(names)))) or len(set(names.values())) < len(names):
        raise BadInput(
            f"{path} must number two or more mediums 0, 1 ... without a gap or a repetition."
        )
    return [names[index] for index in range(len(names))]


def read_rows(path, labels, image_folder):
    """{split: [(file, class index, museum, stamp)]} of MAMe_dataset.csv, in its order. Cells are stripped,
    as it writes 'Woven fabric ' with a space that the label file lacks."""
    header, *rows = read_csv(path, "fetch it again with get_data.py") or [[]]
    header = [cell.strip() for cell in header]
    missing = [column for column in MAME_COLUMNS if column not in header]
    if missing:
        raise BadInput(f"{path} lacks the column {missing[0]!r}; its header is {header}.")
    if not image_folder.is_dir():
        raise BadInput(f"There is no folder {image_folder}; `python get_data.py mame` fetches it.")
    with os.scandir(image_folder) as entries:
        stamps = {entry.name: file_stamp(entry) for entry in entries}
    columns = [header.index(column) for column in MAME_COLUMNS]
    index_of = {label: index for index, label in enumerate(labels)}
    seen, splits = set(), {split: [] for split in SPLITS}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise BadInput(
                f"{path}, row {number}: {len(row)} cells where the header has {len(header)}."
            )
        file, medium, museum, subset = (row[column].strip() for column in columns)
        split = SPLIT_NAMES.get(subset.lower())
        if file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise BadInput(f"{path}, row {number}: {file!r} is not the name of a file.")
        if medium not in index_of:
            raise BadInput(f"{path}, row {number}: the medium {medium!r} is not in the label file.")
        if not split:
            raise BadInput(f"{path}, row {number}: the subset {subset!r} is none of {SPLITS}.")
        if file in seen:
            raise BadInput(
                f"{path}, row {number}: {file!r} is listed twice; each file needs one row."
            )
        seen.add(file)
        splits[split].append((file, index_of[medium], museum, stamps.get(file, (-1, 0))))
    if not all(splits.values()):
        raise BadInput(
            f"{path} has no row of the subset {min(splits, key=lambda s: len(splits[s]))!r}."
        )
    return splits
