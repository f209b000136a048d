"""Own pictures in folders: which are pictures, of which class and split, and which are copies.

    DIR/{train,val,test}/CLASS/*     split by hand, as DIR/CLASS/{train,val,test}/*
    DIR/CLASS/*                      split at first use, class by class; DIR/split.csv records it
    DIR/CLASS/OBJECT/*               several views of one object, which stay in one split, as copies

Folders below a class may be nested further. Pictures of a class with one name, as IMG_1.HEIC and
IMG_1.jpg, stay together too: see `group_class`. Skipped, and said: what systems and programs keep
among the pictures, runs of these scripts, and files that are not pictures by their name.
"""

import os
import posixpath
import re
import unicodedata
from collections import Counter
from operator import attrgetter
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import DisjointSet

from transfer.console import BadInput
from transfer.digests import folder_key, read_digests
from transfer.files import locked, printable, read_csv, write_csv
from transfer.flags import DEFAULT_CACHE
from transfer.study import SPLITS

OF_SYSTEMS = "hidden, or of systems and programs"
PICTURES = "pictures"
NAMES = {  # of files and folders, by their names; the first that fits
    # of Synology, QNAP, macOS, Windows, Linux, Android and Lightroom
    OF_SYSTEMS: (
        r"\..*|__MACOSX|@(eaDir|__thumb|tmp|Recycle|Recently-Snapshot)|#(recycle|snapshot)"
        r"|\$RECYCLE\.BIN|System Volume Information|lost\+found|LOST\.DIR|.*\.lrdata"
    ),
    PICTURES: (
        r".*\.(avif|bmp|gif|hei[cf]|hif|j2k|jfif|jp[2efgx]|jpeg|p[gnp]m|png|tga|tiff?|webp)"
    ),
    "pictures of kinds that are not read (save them as JPEG, PNG or TIFF)": (
        r".*\.(arw|cr[23]|dng|eps|exr|hdr|ico|jxl|nef|orf|pcx|pdf|pef|ps[bd]|raf|raw|rw2|svg|wmf|xcf)"
    ),
    "not pictures by their name": ".*",
}
KINDS = {kind: re.compile(pattern, re.DOTALL | re.I) for kind, pattern in NAMES.items()}
# Small Cyrillic and Greek letters that look like Latin ones, most of them as capitals too.
LOOK_ALIKES = str.maketrans("авекмнорстухһіјѕԛԝαβεζηικμνορτυχ", "abekmhopctyxhijsqwabezhikmvoptyx")
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
OURS = (RECORD, f".{RECORD}.lock")
RECORDS = Path("data/splits")  # of folders that cannot be written
SPLIT_SHARES = {"test": 0.2, "val": 0.1}  # of a class, at least one picture each; the rest trains


def same_name(name):
    """A name as it is compared: letters like ö, which systems write in two ways, in one (NFC)."""
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", printable(name))


def class_of(file):
    """The class of a picture by its path, CLASS/... or, of a split by hand, SPLIT/CLASS/..."""
    first, second, *_ = same_name(file).split("/")
    return second if first.lower() in SPLIT_NAMES else first


def changed_classes(before, now):
    """Which names of classes are gone and which are new, in words."""
    gone = sorted(set(before) - set(now))
    new = sorted(set(now) - set(before))
    return f"gone: {', '.join(gone) or 'none'}; new: {', '.join(new) or 'none'}"


def read_folders(root, seed, cache=DEFAULT_CACHE):
    """The classes and splits of the pictures in `root`. Those without a split yet get one, by
    `seed`, and root/split.csv records it. cache: as of `read_digests`. Returns (class names in
    alphabetical order, rows (split, file, class index, "", digest)); a file's name is its path in
    `root`, with slashes. BadInput for what cannot be split."""
    # which pictures there are
    found = walk_pictures(root)
    recorded = read_records(root)
    by_hand = split_by_hand(root, found, recorded)
    files = by_hand or [file for file in found if "/" in file]
    say_outside(root, found, files)

    # what they hold, and in which splits they are
    digests = read_digests(root, files, cache)
    copies = find_copies(digests)
    split_of = by_hand or split_pictures(root, digests, recorded, copies, seed)
    warn_of_copies(copies, split_of)

    labels = sorted(set(map(class_of, split_of)))
    warn_of_look_alikes(labels)
    rows = [
        (split, file, labels.index(class_of(file)), "", digests.get(file, ""))
        for file, split in sorted(split_of.items())
    ]
    return labels, rows


def split_in(file):
    """The split that a picture's path names, SPLIT/CLASS/... or CLASS/SPLIT/...; else None."""
    folders = file.lower().split("/")[:-1]
    return next(filter(None, map(SPLIT_NAMES.get, folders[:2])), None)


def split_by_hand(root, files, recorded):
    """{file: split} of those `files` whose folders name their splits; {} where none does, or where
    such classes were split otherwise when they were `recorded`. BadInput where not all three are
    there."""
    split_of = {file: split_in(file) for file in files}
    found = set(filter(None, split_of.values()))
    if found and any(map(split_in, recorded)):
        print(f"The split of {root} is the one that is recorded, not that of its folders.")
        return {}
    if found and found != set(SPLITS):
        raise BadInput(
            f"{root} has folders that are named like splits ({', '.join(sorted(found))}); have one "
            "for each of train, val and test, or rename those that are classes or objects."
        )
    return {file: split for file, split in split_of.items() if split and file.count("/") > 1}


def say_outside(root, found, files):
    """Say what a user may miss later: which pictures in `root` are `found`, but none of `files`,
    those of classes, and which folders have none."""
    outside = len(found) - len(files)
    if outside:
        print(f"Skipped in {root}, pictures that lie in no class's folder: {outside}")
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    empty = folders - {file.split("/")[0] for file in files}
    shown = ", ".join(sorted(name for name in empty if kind_of(name) != OF_SYSTEMS))
    if shown:
        print(f"Skipped in {root}, folders without pictures of a class: {shown}")


def kind_of(name):
    """Which of KINDS a file or folder is."""
    return next(kind for kind, pattern in KINDS.items() if pattern.fullmatch(name))


def walk_files(folder, inside="", above=()):
    """Yields (path, which of KINDS) of all files below `folder`, by name, and of what is of
    systems, also folders. Paths have slashes and begin with `inside`. Links are followed, but not
    in a circle, and runs of these scripts are skipped. BadInput names a link that leads nowhere;
    OSError has the name of a folder that cannot be listed."""
    here = os.path.realpath(folder)
    if here in above:
        return
    # a run keeps pictures too, of its figures
    config = Path(folder, "config.json")
    if config.is_file() and '"arguments"' in config.read_text(errors="replace"):
        print(f"Skipped: {folder}, which holds a run of these scripts")
        return

    for entry in sorted(os.scandir(folder), key=attrgetter("name")):
        file = inside + entry.name
        kind = kind_of(entry.name)
        if kind == OF_SYSTEMS:
            yield file, kind
        elif entry.is_dir():
            yield from walk_files(entry.path, f"{file}/", (*above, here))
        elif entry.is_file() or "." in entry.name:  # a picture that is missing is named later
            yield file, kind
        else:
            raise BadInput(f"The link {entry.path} leads nowhere; correct it, or remove it.")


def walk_pictures(folder):
    """The paths in `folder`, with slashes, of all pictures below it, by name; says what it
    skipped."""
    skipped = Counter()
    found = []
    for file, kind in walk_files(folder):
        if kind == PICTURES:
            found.append(file)
        elif file not in OURS:
            name = posixpath.basename(file)
            skipped[kind, posixpath.splitext(name)[1] or name] += 1

    for kind in KINDS:
        shown = [f"{count} {what}" for (of, what), count in skipped.most_common() if of == kind]
        if shown:
            print(f"Skipped in {folder}, {kind}: {', '.join(shown[:5])}")
    return found


def look_of(name):
    """A name as it looks: whatever its letters' case and alphabet, without what is not seen."""
    letters = unicodedata.normalize("NFKC", name).casefold().translate(LOOK_ALIKES)
    return " ".join("".join(filter(str.isprintable, letters)).split())


def warn_of_look_alikes(labels):
    """Name those among `labels` that are hard to tell apart on screen."""
    for alike in repeated(labels, look_of):
        names = ", ".join(map(ascii, alike))
        print(f"Warning: classes that look alike: {names}; give the folders of one class one name.")


def grouped(items, key):
    """{key(item): the `items` that have it}."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def repeated(items, key):
    """Lists, of two or more each, of the `items` that have the same key(item)."""
    return [same for same in grouped(items, key).values() if len(same) > 1]


def find_copies(digests):
    """Lists of the files among `digests`, {file: digest}, that are equal byte for byte."""
    return repeated(filter(digests.get, digests), digests.get)  # not those that cannot be read


def warn_of_copies(copies, split_of):
    """Name some of the `copies` that lie in several classes or splits. split_of: {file: split}."""
    parted = [
        " = ".join(same[:3])
        for same in copies
        if len({(class_of(file), split_of[file]) for file in same}) > 1
    ]
    if parted:
        print(
            f"Warning: {len(parted)} pictures lie in several classes or splits, byte for byte: "
            f"{'; '.join(parted[:3])}"
        )


def record_elsewhere(root):
    """Where the split of a folder that cannot be written is recorded."""
    return RECORDS / f"{folder_key(root)}.csv"


def read_records(root):
    """{same_name: split} of the pictures in `root` that have a split already."""
    return read_record(record_elsewhere(root)) | read_record(root / RECORD)


def split_pictures(root, files, recorded, copies, seed):
    """{file: split} of `files` and of those that are gone, as `recorded`. New ones are split and
    recorded first: in root/split.csv, or where that cannot be written, elsewhere. BadInput where
    classes were renamed."""
    names = {file: same_name(file) for file in files}
    known = set(names.values())

    # classes that are gone and others that are new, as after renaming a folder
    before = set(map(class_of, recorded))
    now = set(map(class_of, known))
    if before - now and now - before:
        raise BadInput(
            f"The classes are not those of {root / RECORD} ({changed_classes(before, now)}); name "
            "their folders as before, change the names in its rows, or delete the rows of those "
            "gone."
        )

    if known - recorded.keys():
        try:
            recorded = record_split(root / RECORD, root, names, copies, seed)
            record_elsewhere(root).unlink(missing_ok=True)
        except OSError as error:
            print(f"{root} cannot be written ({error.strerror}): its split goes to {RECORDS}.")
            recorded = record_split(record_elsewhere(root), root, names, copies, seed)

    gone = recorded.keys() - known  # named as missing where pictures are decoded
    return {file: recorded[same_name(file)] for file in [*names, *gone]}


def record_split(record, root, names, copies, seed):
    """Split those of `names`, {file: same_name}, that have no split, and write the file `record`;
    returns all that it holds, {same_name: split}."""
    with locked(record):
        recorded = read_records(root)  # another command may just have written it
        added = make_split(root, names, recorded, copies, seed)
        recorded |= added
        write_csv(record, [{"file": name, "split": recorded[name]} for name in sorted(recorded)])

    if added:
        print(
            f"Split {len(added)} pictures class by class with seed {seed}, recorded in {record}; "
            "delete that file to split them again."
        )
        warn_of_views(added)
    return recorded


def warn_of_views(files):
    """Say what it does to the test where `files` look like views of objects without folders."""
    views = filter(None, map(VIEW.fullmatch, files))
    objects = repeated(views, lambda view: view[1])
    if len(objects) > 2 * len(set(map(class_of, files))):
        first, second, *_ = objects[0]
        print(
            f"Files such as {first[0]} and {second[0]} look like views of one object. Split "
            "between train and test they make the test look too good. Put each object's pictures "
            f"into a folder, CLASS/OBJECT/*, then delete {RECORD}."
        )


def stem_of(name):
    """The name of a picture, whatever its folder, letter case and kind."""
    return Path(name).stem.lower()


def group_class(names):
    """{name: its group} of `names`, those of one class, as `same_name` gives them. An object is a
    folder below the one that all of them lie in. Elsewhere pictures of one stem are a group, also
    with those in a folder that has most of its stems in common with the folder that all lie in, as
    thumbnails have, or with the only other folder, as images and masks."""
    own = posixpath.commonpath([posixpath.dirname(name) for name in names])

    def folder_of(name):
        inside = name[len(own) + 1 :]
        return inside[: inside.find("/") + 1]

    # the stems that objects do not have
    folders = grouped(names, folder_of)
    stems = {folder: set(map(stem_of, same)) for folder, same in folders.items()}
    shared = stems.get("", set())
    if not shared and len(folders) == 2:
        shared = set.intersection(*stems.values())

    group_of = {}
    for folder, same in folders.items():
        is_object = len(shared & stems[folder]) <= len(shared ^ stems[folder])
        group_of |= {name: folder if is_object else stem_of(name) for name in same}
    return group_of


def group_files(names, copies):
    """{file: its group} of `names`, {file: same_name}. No split may part a group: copies, and what
    belongs together as of `group_class`. Says which do by their names."""
    together = []
    for same in grouped(names.values(), class_of).values():
        together += repeated(same, group_class(same).get)
    namesakes = [same for same in together if len(set(map(stem_of, same))) == 1]
    if namesakes:
        print(
            f"Pictures of one name stay together, {len(namesakes)} times: "
            f"{' = '.join(namesakes[0][:3])} ... Move folders of thumbnails or masks away, if they "
            "are not to be learned."
        )

    together += [[names[file] for file in same] for same in copies]
    groups = DisjointSet(names.values())
    for first, *others in together:
        for other in others:
            groups.merge(first, other)
    return {file: groups[name] for file, name in names.items()}


def make_split(root, names, recorded, copies, seed):
    """{same_name: split} of those of `names`, {file: same_name}, that are not `recorded`: each
    class as near to SPLIT_SHARES as its groups allow, by the seed and the names alone. BadInput
    where a class has fewer groups than there are splits."""
    # what is recorded of a part of a group decides for the rest
    group_of = group_files(names, copies)
    split_of = {group_of[file]: recorded[name] for file, name in names.items() if name in recorded}

    for label, files in grouped(names, class_of).items():
        sizes = Counter(map(group_of.get, files))
        shuffled = np.random.default_rng([seed, *label.encode()]).permutation(list(sizes))
        new = [group for group in shuffled if group not in split_of]
        if new and len(sizes) < len(SPLITS):
            raise BadInput(
                f"The class {label!r} in {root} has {len(sizes)} pictures or objects (folders "
                "below it, copies) and three are needed, for train, val and test; add some, or "
                "move it away."
            )
        split_class(sizes, new, split_of)

    return {name: split_of[group_of[file]] for file, name in names.items() if name not in recorded}


def split_class(sizes, new, split_of):
    """Add the groups `new` of a class, in their order, to split_of, {group: split}: test and val
    take their shares, train the rest. sizes: {group: number of pictures} of the class."""
    have = Counter()
    for group, size in sizes.items():
        have[split_of.get(group)] += size

    for split, share in SPLIT_SHARES.items():
        # of groups that are all larger than the share it takes the smallest one
        smallest = min((sizes[group] for group in new), default=0)
        target = max(smallest, round(share * sizes.total()))

        # each of the other splits that has nothing yet is left a group
        reserved = sum(not have[other] for other in SPLITS if other != split)
        for group in list(new):
            if have[split] + sizes[group] <= target and len(new) > reserved:
                split_of[group] = split
                have[split] += sizes[group]
                new.remove(group)
    split_of |= dict.fromkeys(new, "train")


def read_record(path):
    """{same_name: split} of a split.csv, which a spreadsheet may have saved; {} where there is none
    yet. BadInput names a row that is damaged."""
    recorded = {}
    if not path.exists():
        return recorded
    advice = "fix it (CSV in UTF-8), or delete it to have the pictures split again"
    for number, row in enumerate(read_table(path, ("file", "split"), advice), 2):
        file, split = row
        if "/" not in file:
            file = file.replace("\\", "/")
        file = same_name(file)
        split = SPLIT_NAMES.get(split.strip().lower())
        if not split or "/" not in file or file in recorded:
            raise BadInput(
                f"{path}, row {number}: expected file,split with each file once and a split of "
                f"train, val or test, found {row}; {advice}."
            )
        recorded[file] = split
    return recorded


def read_table(path, columns, advice):
    """The rows of a CSV file with a header: for each a list of its cells in `columns`, which are in
    lower case, "" where one is missing. BadInput, which ends with `advice`, as `read_csv`."""
    header, *rows = read_csv(path, advice) or [[]]
    names = [cell.strip().lower() for cell in header]
    cells = (dict(zip(names, row)) for row in rows)
    return [[row.get(column, "") for column in columns] for row in cells]
