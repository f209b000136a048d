"""One's own pictures, in folders that are named after their classes.

    DIR/{train,val,test}/CLASS/*    split by hand
    DIR/CLASS/*                     split at first use, class by class, as DIR/split.csv records

Below CLASS there may be folders. Names that begin with a dot or '__' are passed over, as are files that
are not pictures by their name.
"""

import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np

from transfer.files import lock_of, locked, read_csv, write_csv
from transfer.images import file_stamp
from transfer.screen import BadInput

SPLITS = ("train", "val", "test")
SHARES = {"test": 0.2, "val": 0.1}  # of a class, at least one picture each; the rest trains
PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RECORD = "split.csv"
MAME_NAMES = ("data_256", "MAMe_metadata", "MAMe_dataset.csv", "MAMe_labels.csv")
COLUMNS = ["file", "split", "seed"]
OWN_FILES = (RECORD, "defaults.json")


def is_in_folders(root):
    """Whether the dataset folder `root` holds folders of pictures rather than MAMe's metadata."""
    return not any((root / name).exists() for name in MAME_NAMES)


def read_folders(root, seed):
    """(class names in alphabetical order, {split: [(file, class index, size and time of change)]}).

    A file's name is its path in `root`, with slashes. seed: of the split, where it is drawn now; one that
    DIR/split.csv records stays, and pictures that are new since then are added to it. BadInput where the
    folders hold no two classes, or a class is missing in a split.
    """
    names = folders_in(root)
    missing = [split for split in SPLITS if split not in names]
    if missing and names and set(names) <= set(SPLITS):
        raise BadInput(
            f"{root} has a folder {names[0]} and none named {missing[0]}; make it, or put the folders "
            f"of the classes directly into {root}, which are then split by seed."
        )
    if missing:
        pictures, depth = split_pictures(root, find_pictures(root, ""), seed), 0
    else:
        pictures, depth = {split: find_pictures(root, split) for split in SPLITS}, 1
    classes = {split: Counter(file.split("/")[depth] for file in pictures[split]) for split in SPLITS}
    labels = sorted(set().union(*classes.values()))
    if len(labels) < 2:
        raise BadInput(
            f"{root} has {len(labels)} folders with pictures where a classifier needs two or more: "
            "DIR/CLASS/*, or DIR/{train,val,test}/CLASS/*, or MAMe's layout (`python get_data.py mame`)."
        )
    for split in SPLITS:
        for label in labels:
            if not classes[split][label]:
                raise BadInput(
                    f"The class {label!r} has no picture in the {split} split of {root}; add some."
                )
    index_of = {label: index for index, label in enumerate(labels)}
    return labels, {
        split: [(file, index_of[file.split("/")[depth]], stamp) for file, stamp in pictures[split].items()]
        for split in SPLITS
    }


def folders_in(root):
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not hidden(entry.name))


def hidden(name):
    return name.startswith((".", "__"))


def walk_pictures(folder):
    """The paths of all pictures below `folder`, by name. Says what it passed over."""
    found, passed_over = [], Counter()
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not hidden(name)]
        for path in (Path(where) / file for file in files if not hidden(file)):
            if path.suffix.lower() in PICTURE_SUFFIXES:
                found.append(path)
            elif path.name not in OWN_FILES:
                passed_over[path.suffix or path.name] += 1
    if passed_over:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in passed_over.most_common(5))
        print(f"Passed over in {folder}, not pictures by their name: {kinds}", flush=True)
    return sorted(found)


def find_pictures(root, below):
    """{path in `root`, with slashes: (size in bytes, time of change in ns)} of the pictures in the
    folders of `root`/`below`, by name."""
    return {
        path.relative_to(root).as_posix(): file_stamp(path)
        for path in walk_pictures(root / below)
        if path.parent != root / below  # else in no class
    }


# Pictures without a split ----------------------------------------------------------------


def split_pictures(root, pictures, seed):
    """{split: {file: stamp}} of `pictures`, as root/split.csv records it; drawn and recorded first where
    that does not list them all."""
    record, recorded = place_of_record(root), {}
    for path in dict.fromkeys((root / RECORD, record)):
        recorded |= read_record(path)
    if set(pictures) - set(recorded):
        lock = lock_of(record)
        with locked(lock):
            recorded |= read_record(record)  # another command may just have drawn it
            drawn = draw_split(root, pictures, recorded, seed)
            if drawn:
                recorded |= drawn
                rows = [dict(zip(COLUMNS, (file, *recorded[file]))) for file in sorted(recorded)]
                write_csv(record, rows)
                print(
                    f"Split {len(drawn)} pictures class by class with seed {seed}, as {record} records; "
                    "delete that file to have them split anew.",
                    flush=True,
                )
        lock.unlink(missing_ok=True)  # whoever waits for it finds every picture recorded
    splits = {split: {} for split in SPLITS}
    for file, (split, _) in sorted(recorded.items()):
        splits[split][file] = pictures.get(file, (-1, 0))  # recorded and gone: as good as missing
    return splits


def place_of_record(root):
    """The file that records the split of the pictures in `root`: there, or where nothing can be written
    there, in data/splits/ under a name that follows from the folder's path."""
    if os.access(root, os.W_OK):
        return root / RECORD
    path = root.resolve()
    return Path("data/splits") / f"{path.name}-{hashlib.sha256(bytes(path)).hexdigest()[:8]}.csv"


def draw_split(root, pictures, recorded, seed):
    """{file: (split, seed)} of the pictures that `recorded` does not hold, so that each class comes as
    near to SHARES as the recorded ones allow. Depends on the seed and the names alone."""
    classes = {}
    for file in pictures:
        classes.setdefault(file.split("/")[0], []).append(file)
    drawn = {}
    for label, files in classes.items():
        if len(files) < len(SPLITS):
            raise BadInput(
                f"The class {label!r} in {root} has {len(files)} pictures, and three is the least that can "
                "be split into train, val and test; add some, or move its folder away."
            )
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(files))
        new = [files[index] for index in order if files[index] not in recorded]
        have = Counter(recorded[file][0] for file in files if file in recorded)
        for split, share in SHARES.items():
            wanted = max(1, round(share * len(files))) - have[split]
            drawn |= {file: (split, seed) for file in new[: max(0, wanted)]}
            new = new[max(0, wanted) :]
        drawn |= {file: ("train", seed) for file in new}
    return drawn


def read_record(path):
    """{file: (split, seed)} of a split.csv; nothing where there is none yet."""
    if not path.exists():
        return {}
    mend = "mend it, or delete it to have the pictures split anew"
    header, *rows = read_csv(path, mend) or [[]]
    recorded = {}
    for number, row in enumerate(rows, 2):
        file = row[0] if row else ""
        parts = file.split("/")
        good = header == COLUMNS and len(row) == len(COLUMNS) and len(parts) > 1 and file not in recorded
        if not good or ".." in parts or "" in parts or "\0" in file or row[1] not in SPLITS:
            raise BadInput(f"{path}, row {number}: {','.join(row)!r} is not {','.join(COLUMNS)}; {mend}.")
        recorded[file] = row[1], row[2]
    return recorded
