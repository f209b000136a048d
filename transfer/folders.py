"""Own pictures in folders: which are pictures, of which class and split, and which are copies.

    DIR/{train,val,test}/CLASS/*     split by hand
    DIR/CLASS/*                      split at first use, class by class; DIR/split.csv records it
    DIR/CLASS/OBJECT/*               several views of one object, which stay in one split, as copies

Folders below a class may be nested further. Skipped: names that begin with a dot or '__', runs of
these scripts, and files that are not pictures by their name.
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from transfer.console import BadInput
from transfer.files import lock_of, locked, printable, read_csv, write_csv
from transfer.study import SPLITS

PICTURES = (
    ".avif .bmp .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .pgm .png .pnm "
    ".ppm .tga .tif .tiff .webp"
)
UNREAD_PICTURES = (
    ".arw .cr2 .cr3 .dng .eps .exr .hdr .ico .jxl .nef .orf .pcx .pdf .pef .psb .psd .raf .raw "
    ".rw2 .svg .wmf .xcf"
)
HIDDEN = (".", "__")  # what skipped names begin with
SPLIT_NAMES = {  # in any letter case, as folders and in split.csv
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
# CLASS/OBJECT, then the number or letter of one of its views, as OBJECT_2.jpg or OBJECT (b).png.
VIEW = re.compile(r"([^/]+/[^/]+?)[ _-]+\(?(\d{1,2}|[a-zA-Z])\)?\.[^./]*")
RECORD = "split.csv"
RECORD_COLUMNS = ("file", "split", "seed")
SPLIT_SHARES = {"test": 0.2, "val": 0.1}  # of a class, at least one picture each; the rest trains
MISSING = (-1, 0)  # the stamp of a file that is not there


def same_name(name):
    """A name as it is compared: letters like ö, which systems write in two ways, in one (NFC)."""
    return unicodedata.normalize("NFC", printable(name))


def class_of(file):
    """The class of a picture by its path, CLASS/... or, of a split by hand, SPLIT/CLASS/..."""
    first, second, *_ = same_name(file).split("/")
    return second if first.lower() in SPLIT_NAMES else first


def file_stamp(path):
    """(size in bytes, time of change in ns) of the file `path`; MISSING where there is none."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere or in a loop: as good as missing
        return MISSING
    return status.st_size, status.st_mtime_ns


def read_folders(root, seed):
    """The classes and splits of the pictures in `root`. Those without a split yet get one, by
    `seed`, and root/split.csv records it. Returns (class names in alphabetical order, rows (split,
    file, class index, "", stamp)); a file's name is its path in `root`, with slashes. BadInput for
    what cannot be split."""
    by_hand = split_folders(root)
    stamps = list_pictures(root, by_hand)
    copies = find_copies(root, stamps)
    if by_hand:
        split_of = {file: by_hand[file.split("/")[0]] for file in stamps}
    else:
        split_of = split_pictures(root, stamps, copies, seed)
    warn_of_copies(copies, split_of)

    labels = sorted(set(map(class_of, split_of)))
    rows = [
        (split, file, labels.index(class_of(file)), "", stamps.get(file, MISSING))
        for file, split in sorted(split_of.items())
    ]
    return labels, rows


def folders_in(root):
    """The names of the folders in `root`, in alphabetical order, without hidden ones."""
    return sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)
    )


def split_folders(root):
    """{folder in `root`: its split} of a split by hand, {} where the folders are classes. BadInput
    where some are named like splits, but not one for each of the three."""
    names = [name for name in folders_in(root) if name.lower() in SPLIT_NAMES]
    found = {name: SPLIT_NAMES[name.lower()] for name in names}
    if found and sorted(found.values()) != sorted(SPLITS):
        raise BadInput(
            f"{root} has folders that are named like splits ({', '.join(found)}); "
            "have one for each of train, val and test, or rename those that are classes."
        )
    return found


def list_pictures(root, by_hand):
    """{file: stamp} of the pictures in the folders of classes; says what it skipped. by_hand: as
    `split_folders` gives it."""
    names = by_hand or folders_in(root)
    depth = 2 if by_hand else 1  # SPLIT/CLASS/file or CLASS/file
    files = [path.relative_to(root).as_posix() for path in walk_pictures(root)]
    stamps = {
        file: file_stamp(root / file)
        for file in files
        if file.count("/") >= depth and file.split("/")[0] in names
    }

    # what a user may miss later
    outside = len(files) - len(stamps)
    if outside:
        print(f"Skipped in {root}, pictures that lie in no class's folder: {outside}")
    empty = set(folders_in(root)) - {file.split("/")[0] for file in stamps}
    if empty:
        print(f"Skipped in {root}, folders without pictures of a class: {', '.join(sorted(empty))}")
    return stamps


def walk_files(folder, above=()):
    """Yields the paths of all files below `folder`, by name. Links are followed, but not in a
    circle, and runs of these scripts are skipped. BadInput names a folder that cannot be listed and
    a link that leads nowhere."""
    here = os.path.realpath(folder)
    if here in above:
        return
    try:
        paths = sorted(Path(folder).iterdir())
    except OSError as error:
        raise BadInput(
            f"The folder {folder} cannot be listed: {error.strerror}; change its rights, or move "
            "it away."
        ) from None

    # a run keeps pictures too, of its figures
    config = Path(folder, "config.json")
    if config in paths and '"arguments"' in config.read_text(errors="replace"):
        print(f"Skipped: {folder}, which holds a run of these scripts")
        return

    for path in paths:
        if path.name.startswith(HIDDEN):
            continue
        if path.is_dir():
            yield from walk_files(path, (*above, here))
        elif path.exists() or path.suffix:  # a picture that is missing is named where it is decoded
            yield path
        else:
            raise BadInput(f"The link {path} leads nowhere; correct it, or remove it.")


def walk_pictures(folder):
    """The paths of all pictures below `folder`, by name; says what it skipped."""
    unread = "pictures of kinds that are not read (save them as JPEG, PNG or TIFF)"
    others = "not pictures by their name"
    skipped = {unread: Counter(), others: Counter()}
    found = []
    for path in walk_files(folder):
        kind = path.suffix.lower()
        if kind in PICTURES.split():
            found.append(path)
        elif path.name != RECORD:
            what = unread if kind in UNREAD_PICTURES.split() else others
            skipped[what][path.suffix or path.name] += 1

    for what, counts in skipped.items():
        if counts:
            shown = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5))
            print(f"Skipped in {folder}, {what}: {shown}")
    return found


def repeated(items, key):
    """Lists, of two or more each, of the `items` that have the same key(item)."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [same for same in groups.values() if len(same) > 1]


def find_copies(root, stamps):
    """Lists of the files among `stamps`, {file: stamp}, that are equal byte for byte."""

    def content(file):
        try:
            return hashlib.sha256((root / file).read_bytes()).digest()
        except OSError:  # named where it is decoded
            return file

    same_size = repeated(stamps, lambda file: stamps[file][0])
    return [same for files in same_size for same in repeated(files, content)]


def warn_of_copies(copies, split_of):
    """Name some of the `copies` that lie in several classes or splits. split_of: {file: split}."""
    parted = []
    for same in copies:
        places = {(class_of(file), split_of[file]) for file in same}
        if len(places) > 1:
            parted.append(" = ".join(same[:3]))
    if parted:
        print(
            f"Warning: {len(parted)} pictures lie in several classes or splits, byte for byte: "
            f"{'; '.join(parted[:3])}"
        )


def split_pictures(root, pictures, copies, seed):
    """{file: split} of `pictures` and of those that are gone, as root/split.csv records it. New
    pictures are split and recorded first."""
    record = root / RECORD
    names = {file: same_name(file) for file in pictures}
    known = set(names.values())
    recorded = read_record(record)

    # split those that are new
    if known - set(recorded):
        with locked(record):
            recorded = read_record(record)  # another command may just have written it
            added = make_split(root, names, recorded, copies, seed)
            recorded |= added
            rows = [(name, *recorded[name]) for name in sorted(recorded)]
            write_csv(record, [dict(zip(RECORD_COLUMNS, row)) for row in rows])
        # whoever waits for it finds every picture recorded
        Path(lock_of(record).lock_file).unlink(missing_ok=True)
        if added:
            print(
                f"Split {len(added)} pictures class by class with seed {seed}, recorded in "
                f"{record}; delete that file to split them again."
            )
            warn_of_views(added)

    gone = set(recorded) - known  # named as missing where pictures are decoded
    return {file: recorded[same_name(file)][0] for file in [*names, *gone]}


def warn_of_views(files):
    """Say what it does to the test where `files` look like views of objects without folders."""
    views = filter(None, map(VIEW.fullmatch, files))
    objects = repeated(views, lambda view: view[1])
    classes = set(map(class_of, files))
    if len(objects) > 2 * len(classes) and 2 * sum(map(len, objects)) > len(files):
        first, second, *_ = objects[0]
        print(
            f"Files such as {first[0]} and {second[0]} look like views of one object. Split "
            "between train and test they make the test look too good. Put each object's pictures "
            f"into a folder, CLASS/OBJECT/*, then delete {RECORD}."
        )


def group_files(names, copies):
    """{file: its group} of `names`, {file: same_name}. No split may part a group: copies, and what
    lies in one folder below a class, the views of one object."""
    group_of = {file: "/".join(name.split("/")[:2]) for file, name in names.items()}
    joined_to = {}

    def first_of(group):
        while group in joined_to:
            group = joined_to[group]
        return group

    for same in copies:
        first, *others = sorted({first_of(group_of[file]) for file in same})
        joined_to |= dict.fromkeys(others, first)
    return {file: first_of(group) for file, group in group_of.items()}


def make_split(root, names, recorded, copies, seed):
    """{same_name: (split, seed)} of those of `names`, {file: same_name}, that are not `recorded`:
    each class as near to SPLIT_SHARES as its groups allow, by the seed and the names alone.
    BadInput where a class has fewer groups than there are splits."""
    # what there is of each class, and what of it is recorded
    group_of = group_files(names, copies)
    split_of = {}  # of each group: what is recorded of a part of it decides for the rest
    classes = {}  # {class: {group: number of its pictures}}
    for file, name in names.items():
        if name in recorded:
            split_of.setdefault(group_of[file], recorded[name][0])
        classes.setdefault(class_of(file), Counter())[group_of[file]] += 1

    # test and val take their share of each class, train the rest
    for label, sizes in classes.items():
        shuffled = np.random.default_rng([seed, *label.encode()]).permutation(list(sizes))
        new = [group for group in shuffled.tolist() if group not in split_of]
        if new and len(sizes) < len(SPLITS):
            raise BadInput(
                f"The class {label!r} in {root} has {len(sizes)} pictures or objects (folders "
                "below it, copies) and three are needed, for train, val and test; add some, or "
                "move it away."
            )
        for split, share in SPLIT_SHARES.items():
            new = fill_split(split, share, sizes, new, split_of)
        split_of |= dict.fromkeys(new, "train")

    return {
        name: (split_of[group_of[file]], seed)
        for file, name in names.items()
        if name not in recorded
    }


def fill_split(split, share, sizes, new, split_of):
    """Give groups among `new`, in their order, to `split` until it has its share of a class. sizes:
    {group: number of pictures} of the class. Adds them to `split_of`, {group: split}, and returns
    those left."""
    target = max(1, round(share * sizes.total()))
    have = Counter()
    for group, size in sizes.items():
        have[split_of.get(group)] += size

    # each of the other splits that has nothing yet is left a group
    reserved = sum(not have[other] for other in SPLITS if other != split)
    smallest = min(new, key=sizes.get, default=None)

    left = list(new)
    for group in new:
        grown = have[split] + sizes[group]
        fits = grown <= target or (group == smallest and not have[split])
        if fits and len(left) > reserved:
            split_of[group] = split
            have[split] = grown
            left.remove(group)
    return left


def read_record(path):
    """{same_name: (split, seed)} of a split.csv, which a spreadsheet may have saved; {} where there
    is none yet. BadInput names a row that is damaged."""
    recorded = {}
    if not path.exists():
        return recorded
    advice = "fix it (CSV in UTF-8), or delete it to have the pictures split again"
    for number, row in enumerate(read_table(path, RECORD_COLUMNS, advice), 2):
        file, split, seed = row
        if "/" not in file:
            file = file.replace("\\", "/")
        file = same_name(file)
        split = SPLIT_NAMES.get(split.strip().lower())
        is_path = "/" in file and ".." not in file.split("/")
        if not (split and is_path) or file in recorded:
            raise BadInput(
                f"{path}, row {number}: expected file,split,seed with each file once and a split "
                f"of train, val or test, found {row}; {advice}."
            )
        recorded[file] = (split, seed)
    return recorded


def read_table(path, columns, advice):
    """The rows of a CSV file with a header: for each a list of its cells in `columns`, which are in
    lower case, "" where one is missing. BadInput, which ends with `advice`, as `read_csv`."""
    header, *rows = read_csv(path, advice) or [[]]
    names = [cell.strip().lower() for cell in header]
    cells = (dict(zip(names, row)) for row in rows)
    return [[row.get(column, "") for column in columns] for row in cells]
