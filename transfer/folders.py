"""Own pictures in folders: what is a picture and of which class, how they are split, which are copies.

    DIR/{train,val,test}/CLASS/*     split by hand
    DIR/CLASS/*                      split at first use, class by class, as DIR/split.csv records
    DIR/CLASS/OBJECT/*               several views of one object, which stay in one split, as copies do

Passed over: names that begin with a dot or '__', runs of these scripts, files that are no pictures by name.
"""

import contextlib
import hashlib
import os
import re
import unicodedata
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np

from transfer.console import BadInput
from transfer.files import lock_of, locked, printable, read_csv, write_csv
from transfer.study import SPLITS

PICTURES = (
    "avif bmp gif heic heif hif j2k jfif jp2 jpe jpeg jpf jpg jpx pgm png pnm ppm tga tif tiff webp"
)
UNREAD_PICTURES = (
    "arw cr2 cr3 dng eps exr hdr ico jxl nef orf pcx pdf pef psb psd raf raw rw2 svg wmf xcf"
)
HIDDEN = (".", "__")  # how the names of what is passed over begin
SPLIT_NAMES = {split: split for split in SPLITS}  # in any letter case, as folders and in split.csv
SPLIT_NAMES |= {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
VIEW = re.compile(
    r"(.+?)[ _-]+\(?(\d{1,2}|[a-zA-Z])\)?"
)  # of an object, as the stem of a file's name
RECORD, RECORD_COLUMNS = "split.csv", ["file", "split", "seed"]
SPLIT_SHARES = {"test": 0.2, "val": 0.1}  # of a class, at least one picture each; the rest trains


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
        print(
            f"Passed over in {root}: {len(paths) - len(stamps)} pictures that lie in no class's folder."
        )
    names = {
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)
    }
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
        raise BadInput(
            f"{root} has {len(labels)} folders with pictures and two are needed: {layouts}."
        )
    rows = {split: [] for split in SPLITS}
    for file, split in sorted(split_of.items()):
        rows[split].append((file, labels.index(class_of(file)), "", stamps.get(file, (-1, 0))))
    found = {(split, labels[label]) for split in SPLITS for _, label, *_ in rows[split]}
    for split, label in product(SPLITS, labels):
        if (split, label) not in found:
            raise BadInput(
                f"The class {label!r} has no picture in the {split} split of {root}; add some."
            )
    return labels, rows


def split_folders(root):
    """{folder in `root`: its split} of a split by hand, {} where the folders are those of classes. BadInput
    where some are named like splits and these are not all three."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    found = {name: SPLIT_NAMES[name.lower()] for name in names if name.lower() in SPLIT_NAMES}
    if found and sorted(found.values()) != sorted(SPLITS):
        advice = "let there be one folder for each of train, val and test, or rename those that are classes"
        raise BadInput(
            f"{root} has folders that are named like splits ({', '.join(found)}); {advice}."
        )
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
        raise BadInput(
            f"The folder {folder} cannot be listed: {error.strerror}; mend that."
        ) from None
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
            print(
                f"Warning: {len(parted)} pictures lie in several {parted_by}, byte for byte: {shown}"
            )


def split_pictures(root, pictures, copies, seed):
    """{file: split} of `pictures` and former ones, as root/split.csv records it; first drawn where not."""
    record = root / RECORD
    recorded, names = read_record(record), {file: same_name(file) for file in pictures}
    if set(names.values()) - set(recorded):
        with locked(record):
            recorded = read_record(record)  # another command may just have drawn it
            drawn = make_split(root, names, recorded, copies, seed)
            recorded |= drawn
            rows = [dict(zip(RECORD_COLUMNS, (file, *recorded[file]))) for file in sorted(recorded)]
            write_csv(record, rows)
        # whoever waits for it finds every picture recorded
        Path(lock_of(record).lock_file).unlink(missing_ok=True)
        if drawn:
            done = (
                f"Split {len(drawn)} pictures class by class with seed {seed}, recorded in {record}"
            )
            print(f"{done}; delete that file to split them again.", flush=True)
            warn_of_views(drawn)
    gone = set(recorded) - set(names.values())
    return {file: recorded[name][0] for file, name in [*names.items(), *zip(gone, gone)]}


def warn_of_views(files):
    """Say what it does to the test where names look like views of objects that have no folder each."""
    stems = [VIEW.fullmatch(file.rpartition(".")[0]) for file in files if file.count("/") == 1]
    views = Counter(found[1] for found in stems if found)
    objects = [name for name, count in views.items() if count > 1]
    if len(objects) > 2 * len(set(map(class_of, files))) and 2 * sum(map(views.get, objects)) > len(
        files
    ):
        print(
            f"{objects[0]}_1, _2 look like views of one object: in train and in test they make the test"
        )
        print(f"too good. Put each object's into a folder, CLASS/OBJECT/*, and delete {RECORD}.")


def group_files(files, copies):
    """{file: name of its group} of `files`, {file: `same_name`}: copies, and what lies in one folder below
    a class, views of one object, are in a group, which no split may part."""
    group_of, parent = {file: "/".join(name.split("/")[:2]) for file, name in files.items()}, {}

    def first_of(group):
        return first_of(parent[group]) if group in parent else group

    for same in copies:
        first, *others = sorted({first_of(group_of[file]) for file in same})
        parent |= dict.fromkeys(others, first)
    return {file: first_of(group) for file, group in group_of.items()}


def make_split(root, files, recorded, copies, seed):
    """{same_name: (split, seed)} of those of `files`, {file: same_name}, not `recorded`: each class as near
    to SPLIT_SHARES as its groups (`together`) allow, by the seed and the names alone."""
    classes, group_of, split_of = {}, group_files(files, copies), {}
    for file, name in files.items():
        if name in recorded:  # what is recorded of a group decides for the rest of it
            split_of.setdefault(group_of[file], recorded[name][0])
        classes.setdefault(class_of(file), {}).setdefault(group_of[file], []).append(file)
    for label, groups in classes.items():
        if len(groups) < len(SPLITS) and not set(groups) <= set(split_of):
            advice = (
                "three or more can be split into train, val and test; add some, or move it away"
            )
            what = "pictures or objects (folders below it, copies)"
            raise BadInput(f"The class {label!r} in {root} has {len(groups)} {what}; {advice}.")
        names, total = list(groups), sum(map(len, groups.values()))
        order = np.random.default_rng([seed, *label.encode()]).permutation(len(names))
        new = [names[index] for index in order if names[index] not in split_of]
        have = Counter(split_of[name] for name in names if name in split_of for _ in groups[name])
        for split, share in SPLIT_SHARES.items():
            wanted = max(1, round(share * total)) - have[split]
            kept = sum(
                not have[other] for other in SPLITS if other != split
            )  # groups for the others
            smallest = min(new, key=lambda name: len(groups[name]), default=None)
            for name in list(new):
                size = len(groups[name])
                fits = size <= wanted or name == smallest and not have[split]
                if wanted > 0 and fits and len(new) > kept:
                    split_of[name], wanted = split, wanted - size
                    have[split] += size
                    new.remove(name)
        split_of |= dict.fromkeys(new, "train")
    return {
        name: (split_of[group_of[file]], seed)
        for file, name in files.items()
        if name not in recorded
    }


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
        if (
            not split
            or len(parts) < 2
            or {"", ".."} & set(parts)
            or "\0" in file
            or file in recorded
        ):
            columns = ",".join(RECORD_COLUMNS)
            raise BadInput(f"{path}, row {number}: {','.join(row)!r} is not {columns}; {advice}.")
        recorded[file] = split, cells["seed"]
    return recorded
