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
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.demo import write_demo
from transfer.images import DECODING
from transfer.screen import BadInput
from transfer.store import lock_of, locked, printable, read_csv, read_json, short_name, write_csv
from transfer.study import SPLITS

DEFAULT_DATA = Path("data/mame")
DEMO_DATA = Path("data/demo")
MAME_COLUMNS = ("Image file", "Medium", "Museum", "Subset")
MAME_NAMES = ("data_256", "MAMe_metadata", "MAMe_dataset.csv", "MAMe_labels.csv")
MAME_DEFAULTS = {"name": "mame", "notice": None, "image_size": 224, "weights": "imagenet", "batch_size": 32}
MAME_DEFAULTS |= {"learning_rate": 1e-4, "fine_tune_learning_rate": 1e-5, "pretrain_learning_rate": 1e-4}
MAME_DEFAULTS |= {"epochs": 100, "fine_tune_epochs": 100, "pretrain_epochs": 100}
PICTURES = "avif bmp gif heic heif hif j2k jfif jp2 jpe jpeg jpf jpg jpx pgm png pnm ppm tga tif tiff webp"
UNREAD_PICTURES = "arw cr2 cr3 dng eps exr hdr ico jxl nef orf pcx pdf pef psb psd raf raw rw2 svg wmf xcf"
HIDDEN = (".", "__")  # how the names of what is passed over begin
SPLIT_NAMES = {split: split for split in SPLITS}  # in any letter case, as folders and in split.csv
SPLIT_NAMES |= {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
VIEW = re.compile(r"(.+?)[ _-]+\(?(\d{1,2}|[a-zA-Z])\)?")  # of an object, as the stem of a file's name
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
    pictures: str  # that, the files' times and the rules of decoding: the key of what is stored of them
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
        print(f"There is no MAMe in {DEFAULT_DATA} (see get_data.py), so the demo is used.", flush=True)
        if not root.exists():
            with contextlib.suppress(BadInput):  # another command has just drawn it
                write_demo(root)
    if not root.is_dir():
        raise BadInput(f"There is no dataset folder {root}; name another, or `python get_data.py mame`.")
    if any((root / name).exists() for name in MAME_NAMES):
        image_folder, path = root / "data_256", root / "defaults.json"
        own = read_json(path) if path.exists() else {}  # the demo has one
        if not isinstance(own, dict) or not set(own) <= set(MAME_DEFAULTS):
            raise BadInput(f"{path} may hold these settings and no others: {', '.join(MAME_DEFAULTS)}.")
        defaults = MAME_DEFAULTS | own
        metadata = root if (root / "MAMe_dataset.csv").exists() else root / "MAMe_metadata"
        labels = read_labels(metadata / "MAMe_labels.csv")
        rows = read_rows(metadata / "MAMe_dataset.csv", labels, image_folder)
    else:
        image_folder = root
        defaults = MAME_DEFAULTS | {"name": short_name(root.absolute().name) or "pictures"}
        labels, rows = read_folders(root, seed)
    splits = {split: Split(*map(np.array, zip(*of_split))) for split, of_split in rows.items()}
    fingerprint = fingerprint_of(labels, splits)
    key = [f"{DECODING} {fingerprint}".encode(), *(split.stamps for split in splits.values())]
    pictures = hashlib.sha256(b"".join(key)).hexdigest()
    return Dataset(root, image_folder, labels, splits, defaults, fingerprint, pictures)


def fingerprint_of(labels, splits):
    """sha256 over split, file name, class and size in bytes of every row."""
    digest = hashlib.sha256(json.dumps(labels).encode())
    for name, split in splits.items():
        for file, label, (size, _) in zip(split.files, split.labels, split.stamps):
            digest.update(f"{name}\t{same_name(file)}\t{label}\t{size}\n".encode())
    return digest.hexdigest()


def same_name(name):
    """A name as it is compared: with one form of letters like ö, of which systems write two (NFC)."""
    return unicodedata.normalize("NFC", printable(name))


def class_of(file):
    """The class of a picture by its path, CLASS/... or, of a split by hand, SPLIT/CLASS/..."""
    first, second, *_ = same_name(file).split("/")
    return second if first.lower() in SPLIT_NAMES else first


def file_stamp(entry):
    """(size in bytes, time of change in ns) of a Path or os.DirEntry; (-1, 0) where it is missing."""
    try:
        status = entry.stat()
    except OSError:  # a link to nowhere or in a loop: as good as missing
        return -1, 0
    return status.st_size, status.st_mtime_ns


def read_labels(path):
    """Class names in the official order, from rows `index,medium` (no header)."""
    names = {}
    for number, row in enumerate(read_csv(path, "fetch it again with get_data.py"), 1):
        if len(row) != 2 or not row[0].strip().isdecimal() or not row[1].strip():
            raise BadInput(f"{path}, row {number}: expected 'index,medium', found {','.join(row)!r}.")
        names[int(row[0])] = row[1].strip()
    if sorted(names) != list(range(max(2, len(names)))) or len(set(names.values())) < len(names):
        raise BadInput(f"{path} must number two or more mediums 0, 1 ... without a gap or a repetition.")
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
        file, medium, museum, subset = (row[column].strip() for column in columns)
        split = SPLIT_NAMES.get(subset.lower())
        if file in ("", ".", "..") or set(file) & set("/\\\0"):
            raise BadInput(f"{path}, row {number}: {file!r} is not the name of a file.")
        if medium not in index_of:
            raise BadInput(f"{path}, row {number}: the medium {medium!r} is not in the label file.")
        if not split:
            raise BadInput(f"{path}, row {number}: the subset {subset!r} is none of {SPLITS}.")
        if file in seen:
            raise BadInput(f"{path}, row {number}: {file!r} is listed twice; each file needs one row.")
        seen.add(file)
        splits[split].append((file, index_of[medium], museum, stamps.get(file, (-1, 0))))
    if not all(splits.values()):
        raise BadInput(f"{path} has no row of the subset {min(splits, key=lambda s: len(splits[s]))!r}.")
    return splits


def read_folders(root, seed):
    """(class names in alphabetical order, {split: [(file, class index, "", stamp)]}). A file's name is its
    path in `root`, with slashes. seed: of the split, where DIR/split.csv records none. BadInput where the
    folders hold no two classes, or a class is missing in a split."""
    folders, stamps, paths = split_folders(root), {}, walk_pictures(root)
    for path in paths:
        first, *below = path.relative_to(root).parts
        if len(below) > 1 and first in folders or below and not folders:
            stamps[path.relative_to(root).as_posix()] = file_stamp(path)
    if len(stamps) < len(paths):
        print(f"Passed over in {root}: {len(paths) - len(stamps)} pictures that lie in no class's folder.")
    names = {path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)}
    if empty := sorted(names - {file.split("/")[0] for file in stamps}):
        print(f"Passed over in {root}, as they hold no pictures of a class: {', '.join(empty)}")
    copies = find_copies(root, stamps)
    if folders:
        split_of = {file: folders[file.split("/")[0]] for file in stamps}
    else:
        split_of = split_pictures(root, stamps, copies, seed)
    warn_of_copies(copies, split_of)
    labels = sorted(set(map(class_of, split_of)))
    if len(labels) < 2:
        layouts = "DIR/CLASS/*, DIR/{train,val,test}/CLASS/*, or MAMe's layout (`python get_data.py mame`)"
        raise BadInput(f"{root} has {len(labels)} folders with pictures and two are needed: {layouts}.")
    rows = {split: [] for split in SPLITS}
    for file, split in sorted(split_of.items()):
        rows[split].append((file, labels.index(class_of(file)), "", stamps.get(file, (-1, 0))))
    found = {(split, labels[label]) for split in SPLITS for _, label, *_ in rows[split]}
    for split, label in product(SPLITS, labels):
        if (split, label) not in found:
            raise BadInput(f"The class {label!r} has no picture in the {split} split of {root}; add some.")
    return labels, rows


def split_folders(root):
    """{folder in `root`: its split} of a split by hand, {} where the folders are those of classes. BadInput
    where some are named like splits and these are not all three."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if found and sorted(found.values()) != sorted(SPLITS):
        advice = "let there be one folder for each of train, val and test, or rename those that are classes"
        raise BadInput(f"{root} has folders that are named like splits ({', '.join(found)}); {advice}.")
    return found


def walk_files(folder, above=()):
    """Yields the paths of all files below `folder`, by name. Links are followed, but not in a circle, and
    runs of these scripts are passed over. BadInput names a folder that cannot be listed."""
    here, config = os.path.realpath(folder), Path(folder, "config.json")
    if here in above:
        return
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith(HIDDEN))
    except OSError as error:
        raise BadInput(f"The folder {folder} cannot be listed: {error.strerror}; mend that.") from None
    if config.name in names and '"arguments"' in config.read_text(errors="replace"):
        print(f"Passed over: {folder}, which holds a run of these scripts", flush=True)
        return
    for path in (Path(folder, name) for name in names):
        if path.is_dir():
            yield from walk_files(path, (*above, here))
        elif path.is_symlink() and not path.exists() and not path.suffix:
            raise BadInput(f"The link {path} leads nowhere; mend it, or remove it.")
        else:
            yield path


def walk_pictures(folder):
    """The paths of all pictures below `folder`, by name. Says what it passed over."""
    found, strange, others = [], Counter(), Counter()
    read, known = PICTURES.split(), UNREAD_PICTURES.split()
    for path in walk_files(folder):
        suffix = path.suffix.lower().removeprefix(".")
        if suffix in read:
            found.append(path)
        elif path.name != RECORD:
            (strange if suffix in known else others)[path.suffix or path.name] += 1
    unread = "pictures of kinds that are not read (save them as JPEG, PNG or TIFF)"
    for counts, what in ((strange, unread), (others, "not pictures by their name")):
        if counts:
            kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
            print(f"Passed over in {folder}, {what}: {kinds}", flush=True)
    return found


def find_copies(root, stamps):
    """Lists of the files among `stamps` ({file: stamp}) that are equal byte for byte."""
    by_size, copies = {}, {}
    for file, (size, _) in stamps.items():
        by_size.setdefault(size, []).append(file)
    for file in (file for same in by_size.values() if len(same) > 1 for file in same):
        with contextlib.suppress(OSError):  # what cannot be read is named where it is decoded
            digest = hashlib.sha256((root / file).read_bytes()).digest()
            copies.setdefault(digest, []).append(file)
    return [same for same in copies.values() if len(same) > 1]


def warn_of_copies(copies, split_of):
    """Name the files that `find_copies` found in several classes or splits. split_of: {file: split}."""
    for parted_by, of in (("classes", class_of), ("splits", split_of.get)):
        parted = [" = ".join(same[:3]) for same in copies if len(set(map(of, same))) > 1]
        if parted:
            shown = "; ".join(parted[:3]) + "; ..." * (len(parted) > 3)
            print(f"Warning: {len(parted)} pictures lie in several {parted_by}, byte for byte: {shown}")


def split_pictures(root, pictures, copies, seed):
    """{file: split} of `pictures` and former ones, as root/split.csv records it; first drawn where not."""
    record = root / RECORD
    recorded, names = read_record(record), {file: same_name(file) for file in pictures}
    if set(names.values()) - set(recorded):
        with locked(record):
            recorded = read_record(record)  # another command may just have drawn it
            drawn = draw_split(root, names, recorded, copies, seed)
            recorded |= drawn
            rows = [dict(zip(RECORD_COLUMNS, (file, *recorded[file]))) for file in sorted(recorded)]
            write_csv(record, rows)
        # whoever waits for it finds every picture recorded
        Path(lock_of(record).lock_file).unlink(missing_ok=True)
        if drawn:
            done = f"Split {len(drawn)} pictures class by class with seed {seed}, recorded in {record}"
            print(f"{done}; delete that file to split them again.", flush=True)
            warn_of_views(drawn)
    gone = set(recorded) - set(names.values())
    return {file: recorded[name][0] for file, name in [*names.items(), *zip(gone, gone)]}


def warn_of_views(files):
    """Say what it does to the test where names look like views of objects that have no folder each."""
    stems = [VIEW.fullmatch(file.rpartition(".")[0]) for file in files if file.count("/") == 1]
    views = Counter(found[1] for found in stems if found)
    objects = [name for name, count in views.items() if count > 1]
    if len(objects) > 2 * len(set(map(class_of, files))) and 2 * sum(map(views.get, objects)) > len(files):
        print(f"{objects[0]}_1, _2 look like views of one object: in train and in test they make the test")
        print(f"too good. Put each object's into a folder, CLASS/OBJECT/*, and delete {RECORD}.")


def together(files, copies):
    """{file: name of its group} of `files`, {file: `same_name`}: copies, and what lies in one folder below
    a class, views of one object, are in a group, which no split may part."""
    group_of, parent = {file: "/".join(name.split("/")[:2]) for file, name in files.items()}, {}

    def first_of(group):
        return first_of(parent[group]) if group in parent else group

    for same in copies:
        first, *others = sorted({first_of(group_of[file]) for file in same})
        parent |= dict.fromkeys(others, first)
    return {file: first_of(group) for file, group in group_of.items()}


def draw_split(root, files, recorded, copies, seed):
    """{same_name: (split, seed)} of those of `files`, {file: same_name}, not `recorded`: each class as near
    to SPLIT_SHARES as its groups (`together`) allow, by the seed and the names alone."""
    classes, group_of, split_of = {}, together(files, copies), {}
    for file, name in files.items():
        if name in recorded:  # what is recorded of a group decides for the rest of it
            split_of.setdefault(group_of[file], recorded[name][0])
        classes.setdefault(class_of(file), {}).setdefault(group_of[file], []).append(file)
    for label, groups in classes.items():
        if len(groups) < len(SPLITS) and not set(groups) <= set(split_of):
            advice = "three or more can be split into train, val and test; add some, or move it away"
            what = "pictures or objects (folders below it, copies)"
            raise BadInput(f"The class {label!r} in {root} has {len(groups)} {what}; {advice}.")
        names, total = list(groups), sum(map(len, groups.values()))
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(names))
        new = [names[index] for index in order if names[index] not in split_of]
        have = Counter(split_of[name] for name in names if name in split_of for _ in groups[name])
        for split, share in SPLIT_SHARES.items():
            wanted = max(1, round(share * total)) - have[split]
            kept = sum(not have[other] for other in SPLITS if other != split)  # groups for the others
            smallest = min(new, key=lambda name: len(groups[name]), default=None)
            for name in list(new):
                size = len(groups[name])
                fits = size <= wanted or name == smallest and not have[split]
                if wanted > 0 and fits and len(new) > kept:
                    split_of[name], wanted = split, wanted - size
                    have[split] += size
                    new.remove(name)
        split_of |= dict.fromkeys(new, "train")
    return {name: (split_of[group_of[file]], seed) for file, name in files.items() if name not in recorded}


def read_record(path):
    """{same_name: (split, seed)} of a split.csv, perhaps a spreadsheet's; {} where there is none yet."""
    if not path.exists():
        return {}
    advice = "fix it (CSV in UTF-8), or delete it to have the pictures split again"
    header, *rows = read_csv(path, advice) or [[]]
    header, recorded = [cell.strip().lower() for cell in header], {}
    for number, row in enumerate(rows, 2):
        cells = dict.fromkeys(RECORD_COLUMNS, "") | dict(zip(header, row))
        file = cells["file"] if "/" in cells["file"] else cells["file"].replace("\\", "/")
        file, split = same_name(file), SPLIT_NAMES.get(cells["split"].strip().lower())
        parts = file.split("/")
        if not split or len(parts) < 2 or {"", ".."} & set(parts) or "\0" in file or file in recorded:
            columns = ",".join(RECORD_COLUMNS)
            raise BadInput(f"{path}, row {number}: {','.join(row)!r} is not {columns}; {advice}.")
        recorded[file] = split, cells["seed"]
    return recorded
