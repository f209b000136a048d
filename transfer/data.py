"""A dataset: its files, labels and splits, checked. In MAMe's layout:

    DIR/data_256/<Image file>        the images
    DIR/MAMe_dataset.csv             one row an image: file, medium, museum, split
    DIR/MAMe_labels.csv              index, medium; the order of the classes
    DIR/defaults.json                optional: the demo's own settings (image size, weights ...)

The two CSV files may also lie in DIR/MAMe_metadata/, as MAMe's archive unpacks them. Or your own pictures,
in folders named after their classes, and folders below those as you like:

    DIR/{train,val,test}/CLASS/*     split by hand
    DIR/CLASS/*                      split at first use, class by class, as DIR/split.csv records

Names that begin with a dot or '__' are passed over, as are files that are not pictures by their name.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.demo import write_demo
from transfer.screen import BadInput
from transfer.store import lock_of, locked, read_csv, read_json, write_csv
from transfer.study import SPLITS

DEFAULT_DATA = Path("data/mame")
DEMO_DATA = Path("data/demo")
MAME_COLUMNS = ("Image file", "Medium", "Museum", "Subset")
MAME_NAMES = ("data_256", "MAMe_metadata", "MAMe_dataset.csv", "MAMe_labels.csv")
MAME_DEFAULTS = {"name": "mame", "notice": None, "image_size": 224, "weights": "imagenet", "batch_size": 32}
MAME_DEFAULTS |= {"learning_rate": 1e-4, "fine_tune_learning_rate": 1e-5, "pretrain_learning_rate": 1e-4}
MAME_DEFAULTS |= {"epochs": 100, "fine_tune_epochs": 100, "pretrain_epochs": 100}
PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__")  # how the names of what is passed over begin
RECORD, RECORD_COLUMNS = "split.csv", ["file", "split", "seed"]
SPLIT_SHARES = {"test": 0.2, "val": 0.1}  # of a class, at least one picture each; the rest trains


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
    fingerprint: str  # of the metadata, whichever images can be read: see `fingerprint_of`
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
    the split of folders that have none yet. Returns a Dataset; no image is opened. BadInput for a folder,
    CSV file or row that cannot be used."""
    if data is None:
        data = DEFAULT_DATA if DEFAULT_DATA.exists() else demo_dataset()
    root = Path(data)
    if not root.is_dir():
        advice = f"name another with --data, or make one with `python get_data.py mame --data {root}`"
        raise BadInput(f"There is no dataset folder {root}; {advice}.")
    if any((root / name).exists() for name in MAME_NAMES):
        image_folder, defaults = root / "data_256", read_defaults(root)
        labels = read_labels(find_metadata(root, "MAMe_labels.csv"))
        rows = read_rows(find_metadata(root, "MAMe_dataset.csv"), labels, image_folder)
    else:
        image_folder, defaults = root, MAME_DEFAULTS | {"name": root.absolute().name or "pictures"}
        labels, rows = read_folders(root, seed)
    splits = {split: Split(*map(np.array, zip(*of_split))) for split, of_split in rows.items()}
    return Dataset(root, image_folder, labels, splits, defaults, fingerprint_of(labels, splits))


def fingerprint_of(labels, splits):
    """sha256 over split, file name, class and size in bytes of every row."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name, split in splits.items():
        for file, label, (size, _) in zip(split.files, split.labels, split.stamps):
            digest.update(f"{name}\t{file}\t{label}\t{size}\n".encode())
    return digest.hexdigest()


def demo_dataset():
    """Folder of the demo dataset, drawn first where it is not there yet."""
    print(f"There is no MAMe in {DEFAULT_DATA}, so the demo dataset in {DEMO_DATA} is used instead.")
    print("For MAMe itself: python get_data.py mame", flush=True)
    if not DEMO_DATA.exists():
        with contextlib.suppress(BadInput):  # another command has just drawn it
            write_demo(DEMO_DATA)
    return DEMO_DATA


def file_stamp(entry):
    """(size in bytes, time of change in ns) of a Path or os.DirEntry; (-1, 0) where it is missing."""
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere or in a loop: as good as missing
        return -1, 0
    return status.st_size, status.st_mtime_ns


def find_metadata(root, name):
    """Path of a metadata file in `root` or `root`/MAMe_metadata; BadInput where there is none."""
    for path in (root / name, root / "MAMe_metadata" / name):
        if path.is_file():
            return path
    raise BadInput(f"{root} has no {name}, nor MAMe_metadata/; `python get_data.py mame` fetches it.")


def read_defaults(root):
    """MAMe's settings, with those of `root`/defaults.json (the demo has one) in their place."""
    path = root / "defaults.json"
    own = read_json(path) if path.exists() else {}
    if not isinstance(own, dict) or not set(own) <= set(MAME_DEFAULTS):
        raise BadInput(f"{path} may hold these settings and no others: {', '.join(MAME_DEFAULTS)}.")
    return MAME_DEFAULTS | own


def read_labels(path):
    """Class names in the official order, from rows `index,medium` (no header)."""
    names = {}
    for number, row in enumerate(read_csv(path, "fetch it again with get_data.py"), 1):
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise BadInput(f"{path}, row {number}: expected 'index,medium', found {','.join(row)!r}.")
        names[int(row[0])] = row[1].strip()
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        raise BadInput(f"{path} must number its mediums 0, 1, 2 ... without a gap or a repetition.")
    if len(names) < 2:
        raise BadInput(f"{path} names {len(names)} mediums; a classifier needs two or more.")
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
            raise BadInput(f"{path}, row {number}: {len(row)} cells where the header has {len(header)}.")
        file, medium, museum, split = (row[column].strip() for column in columns)
        if not file or file in (".", "..") or set(file) & set("/\\\0"):
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


def read_folders(root, seed):
    """(class names in alphabetical order, {split: [(file, class index, "", stamp)]}). A file's name is its
    path in `root`, with slashes. seed: of the split, where DIR/split.csv records none. BadInput where the
    folders hold no two classes, or a class is missing in a split."""
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and not e.name.startswith(HIDDEN))
    missing = [split for split in SPLITS if split not in names]
    if missing and names and set(names) <= set(SPLITS):
        advice = f"make it, or put the folders of the classes directly into {root}, to be split by seed"
        raise BadInput(f"{root} has a folder {names[0]} and none named {missing[0]}; {advice}.")
    if missing:
        pictures, depth = split_pictures(root, find_pictures(root, ""), seed), 0
    else:
        pictures, depth = {split: find_pictures(root, split) for split in SPLITS}, 1
    found = {split: {file.split("/")[depth] for file in files} for split, files in pictures.items()}
    labels = sorted(set().union(*found.values()))
    if len(labels) < 2:
        layouts = "DIR/CLASS/*, DIR/{train,val,test}/CLASS/*, or MAMe's layout (`python get_data.py mame`)"
        raise BadInput(f"{root} has {len(labels)} folders with pictures and two are needed: {layouts}.")
    for split in SPLITS:
        for label in set(labels) - found[split]:
            raise BadInput(f"The class {label!r} has no picture in the {split} split of {root}; add some.")
    return labels, {
        split: [(file, labels.index(file.split("/")[depth]), "", stamp) for file, stamp in files.items()]
        for split, files in pictures.items()
    }


def walk_pictures(folder):
    """The paths of all pictures below `folder`, by name. Says what it passed over."""
    found, passed_over = [], Counter()
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
        for path in (Path(where) / file for file in files if not file.startswith(HIDDEN)):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                found.append(path)
            elif path.name != RECORD:
                passed_over[path.suffix or path.name] += 1
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(5))
        print(f"Passed over in {folder}, not pictures by their name: {kinds}", flush=True)
    return sorted(found)


def find_pictures(root, below):
    """{path in `root`, with slashes: stamp} of the pictures in the folders of `root`/`below`."""
    paths = [path for path in walk_pictures(root / below) if path.parent != root / below]
    return {path.relative_to(root).as_posix(): file_stamp(path) for path in paths}


def split_pictures(root, pictures, seed):
    """{split: {file: stamp}} of `pictures`, as root/split.csv records it; what it lacks is drawn first."""
    record = root / RECORD
    recorded = read_record(record)
    if set(pictures) - set(recorded):
        with locked(record):
            recorded = read_record(record)  # another command may just have drawn it
            drawn = draw_split(root, pictures, recorded, seed)
            recorded |= drawn
            rows = [dict(zip(RECORD_COLUMNS, (file, *recorded[file]))) for file in sorted(recorded)]
            write_csv(record, rows)
        # whoever waits for it finds every picture recorded
        Path(lock_of(record).lock_file).unlink(missing_ok=True)
        if drawn:
            done = f"Split {len(drawn)} pictures class by class with seed {seed}, recorded in {record}"
            print(f"{done}; delete that file to split them again.", flush=True)
    splits = {split: {} for split in SPLITS}
    for file, (split, _) in sorted(recorded.items()):
        splits[split][file] = pictures.get(file, (-1, 0))  # recorded and gone: as good as missing
    return splits


def draw_split(root, pictures, recorded, seed):
    """{file: (split, seed)} of the pictures not `recorded`, so that each class comes as near to
    SPLIT_SHARES as those allow. Depends on the seed and the names alone."""
    classes = {}
    for file in pictures:
        classes.setdefault(file.split("/")[0], []).append(file)
    drawn = {}
    for label, files in classes.items():
        if len(files) < len(SPLITS):
            advice = "three or more can be split into train, val and test; add some, or move it away"
            raise BadInput(f"The class {label!r} in {root} has {len(files)} pictures; {advice}.")
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(files))
        new = [files[index] for index in order if files[index] not in recorded]
        have = Counter(recorded[file][0] for file in files if file in recorded)
        for split, share in SPLIT_SHARES.items():
            wanted = max(0, max(1, round(share * len(files))) - have[split])
            drawn |= {file: (split, seed) for file in new[:wanted]}
            new = new[wanted:]
        drawn |= {file: ("train", seed) for file in new}
    return drawn


def read_record(path):
    """{file: (split, seed)} of a split.csv; nothing where there is none yet."""
    if not path.exists():
        return {}
    advice = "fix it, or delete it to have the pictures split again"
    header, *rows = read_csv(path, advice) or [[]]
    recorded = {}
    for number, row in enumerate(rows, 2):
        good = header == RECORD_COLUMNS and len(row) == len(RECORD_COLUMNS) and row[1] in SPLITS
        parts = row[0].split("/")
        if not good or len(parts) < 2 or {"", ".."} & set(parts) or "\0" in row[0] or row[0] in recorded:
            columns = ",".join(RECORD_COLUMNS)
            raise BadInput(f"{path}, row {number}: {','.join(row)!r} is not {columns}; {advice}.")
        recorded[row[0]] = row[1], row[2]
    return recorded
