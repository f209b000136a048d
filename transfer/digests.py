"""What files hold, told by a digest: read once, and then remembered by their sizes and times."""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from transfer.console import progress
from transfer.files import locked, read_json, write_json
from transfer.flags import DEFAULT_CACHE

# A file that has changed less than so many ns ago may change again and keep its time: the coarsest
# file systems count in steps of 2 s.
SETTLED_AFTER = 2 * 10**9


def read_digests(root, files, cache=DEFAULT_CACHE):
    """{file: sha256 of its bytes in hexadecimal, "" where it cannot be read} for `files`, named by
    their paths in the folder `root`. What was read is remembered in the folder `cache`, by file,
    size and time; safe to delete. "none", or a folder that cannot be written: nothing is
    remembered."""
    began = time.time_ns()
    record = Path(cache, f"digests-{folder_key(root)}.json")
    remembered = read_json(record, {})
    stamps = {file: file_stamp(f"{root}/{file}") for file in files}
    keys = {file: f"{size} {changed} {file}" for file, (size, changed) in stamps.items()}
    digests = {file: remembered.get(key) for file, key in keys.items()}

    # read what is new or has changed, and what could not be read, as rights have no time
    new = [file for file, digest in digests.items() if not digest]
    for file in progress(new, "reading new pictures", len(new), " pictures"):
        digests[file] = digest_of(f"{root}/{file}")

    # remember what is sure to have another time once it changes
    settled = {
        keys[file]: digests[file]
        for file, (_, changed) in stamps.items()
        if changed < began - SETTLED_AFTER
    }
    if settled != remembered and cache != "none":
        with contextlib.suppress(OSError), locked(record):
            write_json(record, settled)
    return digests


def file_stamp(path):
    """(size in bytes, time of change in ns) of the file `path`; (-1, 0) where there is none."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere or in a loop: as good as missing
        return -1, 0
    return status.st_size, status.st_mtime_ns


def folder_key(root):
    """What is kept elsewhere about the folder `root` is named by this digest of its path."""
    return hashlib.sha256(os.fsencode(Path(root).resolve())).hexdigest()[:16]


def digest_of(path):
    """sha256 of a file in hexadecimal; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # named where it is decoded
        return ""
