"""A dataset: its files, labels and splits, checked. In MAMe's layout:

    DIR/data_256/<Image file>        the images
    DIR/MAMe_dataset.csv             one row an image: file, medium, museum, split
    DIR/MAMe_labels.csv              index, medium; the order of the classes
    DIR/defaults.json                optional: the demo's own settings (image size, weights ...)

The two CSV files may also lie in DIR/MAMe_metadata/, as MAMe's archive unpacks them. Any other
DIR holds your own pictures, in folders named after their classes: see folders.py.
"""

import hashlib
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.console import BadInput
from transfer.demo import write_demo
from transfer.digests import read_digests
from transfer.files import read_csv, read_json, short_name
from transfer.flags import DEFAULT_CACHE
from transfer.folders import SPLIT_NAMES, read_folders, read_table, same_name
from transfer.images import DECODING
from transfer.recipes import DEFAULTS
from transfer.study import SPLITS

DEFAULT_DATA = Path("data/mame")
DEMO_DATA = Path("data/demo")
MAME_COLUMNS = ("image file", "medium", "museum", "subset")
MAME_NAMES = ("data_256", "MAMe_metadata", "MAMe_dataset.csv", "MAMe_labels.csv")
FETCH = "fetch it again with get_data.py"


class Split(NamedTuple):
    """The rows of one split, in the metadata's order."""

    files: np.ndarray  # (n,) str, names in Dataset.image_folder
    labels: np.ndarray  # (n,) int64, index in Dataset.labels
    museums: np.ndarray  # (n,) str, empty where nothing is known
    digests: np.ndarray  # (n,) str: sha256 of each file, empty where it cannot be read
    # (n, size, size, 3) uint8, once `images.load_images` has decoded them
    images: np.ndarray = None

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
    fingerprint: str  # of all that decides its arrays: see `fingerprint_of`
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
        """Whether these are own pictures in folders: no museums, and no row of the study's."""
        return self.image_folder == self.root


def load_dataset(data, seed=0, cache=DEFAULT_CACHE):
    """The Dataset in folder `data`; None means data/mame, or the demo where that is missing. seed:
    of the split of folders that have none yet. cache: where the digests of files are remembered, as
    --cache. BadInput for what cannot be used."""
    root = Path(data or default_folder())
    if not root.is_dir():
        raise BadInput(f"There is no dataset folder {root}; name another, or `python get_data.py`.")

    # the layout is MAMe's where one of its files is there
    if any((root / name).exists() for name in MAME_NAMES):
        image_folder = root / "data_256"
        defaults = read_defaults(root / "defaults.json")
        labels, rows = read_mame(root, image_folder, cache)
    else:
        image_folder = root
        defaults = DEFAULTS | {"name": short_name(root.absolute().name) or "pictures"}
        labels, rows = read_folders(root, seed, cache)
    check_classes(root, labels, rows)

    split_of, *columns = map(np.array, zip(*rows))
    every = Split(*columns)
    splits = {name: every.take(split_of == name) for name in SPLITS}
    return Dataset(root, image_folder, labels, splits, defaults, fingerprint_of(labels, rows))


def default_folder():
    """data/mame, or the demo's folder where that is missing, the demo rendered at its first use."""
    if DEFAULT_DATA.exists():
        return DEFAULT_DATA
    print(f"There is no MAMe in {DEFAULT_DATA} (see get_data.py), so the demo is used.")
    if not DEMO_DATA.exists():
        write_demo(DEMO_DATA)
    return DEMO_DATA


def check_classes(root, labels, rows):
    """BadInput where there are no two classes, or where one has no picture in a split."""
    if len(labels) < 2:
        raise BadInput(
            f"{root} has pictures of {len(labels)} classes and two are needed, laid out as "
            "DIR/CLASS/*, DIR/{train,val,test}/CLASS/* or MAMe (`python get_data.py`)."
        )
    found = {(split, labels[index]) for split, _, index, *_ in rows}
    for split, label in product(SPLITS, labels):
        if (split, label) not in found:
            raise BadInput(
                f"The class {label!r} has no picture in the {split} split of {root}; add some."
            )


def fingerprint_of(labels, rows):
    """sha256 over the names of the classes, every row (split, file, class index, museum, digest)
    and the version of the rules of decoding: not over the files' times, which a copy of the folder
    need not keep."""
    text = json.dumps([DECODING, labels, rows], ensure_ascii=False)
    return hashlib.sha256(same_name(text).encode()).hexdigest()


def read_defaults(path):
    """The settings of a dataset in MAMe's layout: DEFAULTS, and what a defaults.json changes."""
    own = read_json(path, {})  # the demo has one
    if not isinstance(own, dict) or not set(own) <= set(DEFAULTS):
        raise BadInput(f"{path} may hold these settings and no others: {', '.join(DEFAULTS)}.")
    return DEFAULTS | own


def read_mame(root, image_folder, cache):
    """(class names in the official order, rows (split, file, class index, museum, digest) in the
    metadata's order) of MAMe's layout. BadInput names what is missing or malformed."""
    metadata = root if (root / "MAMe_dataset.csv").exists() else root / "MAMe_metadata"
    labels = read_labels(metadata / "MAMe_labels.csv")
    rows = read_rows(metadata / "MAMe_dataset.csv", labels)
    if not image_folder.is_dir():
        raise BadInput(f"There is no folder {image_folder}; `python get_data.py` fetches it.")
    digests = read_digests(image_folder, [file for _, file, *_ in rows], cache)
    return labels, [(*row, digests[row[1]]) for row in rows]


def read_labels(path):
    """Class names in the official order, from rows `index,medium` (no header)."""
    rows = [[cell.strip() for cell in row] for row in read_csv(path, FETCH)]
    labels = [row[-1] for row in rows]
    expected = [[str(number), label] for number, label in enumerate(labels)]
    if rows != expected or len(set(labels)) < len(labels):
        raise BadInput(
            f"{path} must number its mediums 0, 1 ... in order, each of them once; {FETCH}."
        )
    return labels


def read_rows(path, labels):
    """The rows (split, file, class index, museum) of MAMe_dataset.csv. Cells are stripped, as it
    writes 'Woven fabric ' with a space that the label file lacks. BadInput names a row with a
    fault."""
    rows = {}
    for number, row in enumerate(read_table(path, MAME_COLUMNS, FETCH), 2):
        file, medium, museum, subset = map(str.strip, row)
        split = SPLIT_NAMES.get(subset.lower())
        is_name = file and not set(file) & set("/\\\0")
        if not (is_name and split) or medium not in labels or file in rows:
            raise BadInput(
                f"{path}, row {number}: expected the name of a file that is listed once, a medium "
                f"of the label file, a museum and train, val or test, found {row}; {FETCH}."
            )
        rows[file] = (split, file, labels.index(medium), museum)
    return rows.values()
