"""What is written to disk: whole or not at all, with a checksum, by one process at a time.

Small files are written beside their place and renamed into it. Large arrays grow batch by batch in
<name>.part and are renamed when they are whole, so that an interrupted one goes on where it ended.
<name>.sha256 beside a file is its checksum, as `sha256sum --check` reads it.
"""

import bisect
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transfer.screen import BadInput, progress

LOCK = ".lock"  # in a folder that one process at a time may write to
CHUNK = 1 << 24  # bytes read at once for a checksum


# Small files -----------------------------------------------------------------------------


def write_atomically(path, content):
    """Write str or bytes to `path` so that a reader finds the old file or the whole new one."""
    part = Path(f"{path}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync(path):
    """Wait until a file's content has reached the disk, so that a power failure cannot take it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_json(path, content):
    """Write `content` as JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path):
    """The content of a JSON file that one of the scripts wrote; BadInput where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"There is no {path}; the folder is not one that these scripts wrote.") from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); make it anew or delete its folder.") from None


def read_csv(path, mend):
    """All rows of a CSV file as lists of str; a BOM and Windows line ends are taken off.

    BadInput, which ends with `mend`, where it is not CSV in UTF-8.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8 ({error}); {mend}.") from None


def write_csv(path, rows):
    """Write a list of dicts with the same keys as CSV, atomically."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())


# Checksums -------------------------------------------------------------------------------


def file_digest(path):
    """sha256 of a file's content."""
    digest, size = hashlib.sha256(), os.path.getsize(path)
    with open(path, "rb") as file:
        for _ in progress(range(0, size + 1, CHUNK), f"checking {path}", unit=" x 16 MiB"):
            digest.update(file.read(CHUNK))
    return digest.hexdigest()


def checksum_file(path):
    return Path(f"{path}.sha256")


def replace_with_checksum(part, path, sha256=None):
    """Rename the whole file `part` to `path` and write its checksum; sha256 where it is known.

    While one file replaces another both checksums stand there, so that there is no moment without one.
    """
    sync(part)
    line = f"{sha256 or file_digest(part)}  {Path(path).name}\n"
    before = checksum_file(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    write_atomically(checksum_file(path), line + before)
    os.replace(part, path)
    if before:
        write_atomically(checksum_file(path), line)


def check_file(path):
    """BadInput where the file `path` is missing or is not the one that its checksum was made of."""
    if not Path(path).is_file():
        raise BadInput(f"{path} is missing; make it anew.")
    try:
        known = checksum_file(path).read_text(encoding="utf-8").split()[::2]
    except (FileNotFoundError, UnicodeDecodeError):
        known = []
    if file_digest(path) not in known:
        raise BadInput(
            f"{path} is not the file that was written (it has another sha256 than {path}.sha256 says); "
            "delete it and make it anew."
        )


# One process at a time -------------------------------------------------------------------


@contextlib.contextmanager
def locked(path):
    """Hold the lock file `path`; where another process holds it, say so and wait for that one to end.

    The operating system gives a lock back when its process ends, however that ends. The file stays.
    """
    from filelock import FileLock, Timeout

    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that writes in {Path(path).parent}/", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_of(path):
    """The lock file of one file or folder: hidden, beside it."""
    return path.with_name(f".{path.name}.lock")


# Large arrays ----------------------------------------------------------------------------


class ArrayFile(NamedTuple):
    """A large array on disk."""

    path: Path  # .npy
    shape: tuple  # (n, ...)
    dtype: str
    description: str  # what is shown while it is made

    @property
    def part(self):
        return Path(f"{self.path}.part")


def make_array(file, produce, block):
    """The array of an ArrayFile as a read-only memory map, made first where it is not there yet.

    produce(start, stop) -> array (stop - start, *shape[1:]), called for every `block` rows in order.
    An interrupted one goes on at its last whole block. Raises BadInput where the disk has no room
    for it, or where what is there is not what was written.
    """
    path = file.path
    if path.exists():
        check_file(path)
    else:
        size = math.prod(file.shape) * np.dtype(file.dtype).itemsize
        there = file.part.stat().st_size if file.part.exists() else 0
        check_space(existing_folder(path), size - there, file.description)
        with locked(lock_of(path)):
            if not path.exists():  # else another process has just made it
                replace_with_checksum(file.part, path, fill_array(file, produce, block))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def make_array_together(file, produce, block, share):
    """`make_array` by several workers on a disk that all see: the same file, byte for byte.

    share: a devices.Share. Each worker makes a piece of whole blocks, then those that others have not
    made: it waits for a worker that lives, and goes on at the last whole block of one that does not. The
    first one to have them all joins them.
    """
    path, count, workers = file.path, file.shape[0], share.workers
    if workers == 1 or path.exists():
        return make_array(file, produce, block)
    blocks = -(-count // block)
    bounds = [min(count, blocks * number // workers * block) for number in range(workers + 1)]
    pieces = [
        file._replace(
            path=path.with_name(f"{path.stem}-{number + 1}-of-{workers}.npy"),
            shape=(bounds[number + 1] - bounds[number], *file.shape[1:]),
            description=f"{file.description}, part {number + 1} of {workers}",
        )
        for number in range(workers)
    ]
    claims, found = [piece.path.with_suffix(".claim") for piece in pieces], {}
    for number in sorted(range(workers), key=lambda number: (number - share.worker) % workers):
        first = bounds[number]
        if not pieces[number].shape[0]:
            continue
        with locked(claims[number]):
            if path.exists():  # another worker has joined the pieces and removes them
                break
            found[number] = make_array(
                pieces[number], lambda start, stop, first=first: produce(first + start, first + stop), block
            )

    def join(start, stop):
        number = bisect.bisect_right(bounds, start) - 1
        return found[number][start - bounds[number] : stop - bounds[number]]

    array = make_array(file, join, block)
    for piece, claim in zip(pieces, claims):
        with locked(claim):
            for left in (piece.path, checksum_file(piece.path), lock_of(piece.path), claim):
                left.unlink(missing_ok=True)
    return array


def fill_array(file, produce, block):
    """Append what is missing of an ArrayFile to its part, block by block; returns its sha256.

    Appending rather than a writable memory map: a full disk is an error then and not a crash, and
    the length of the file tells what is done.
    """
    part, shape, dtype, stream = file.part, file.shape, np.dtype(file.dtype), io.BytesIO()
    layout = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, layout)
    header, row_bytes = stream.getvalue(), dtype.itemsize * int(np.prod(shape[1:]))
    part.touch()
    with open(part, "rb+") as stream:
        if stream.read(len(header)) != header:
            stream.truncate(0)
            stream.seek(0)
            stream.write(header)
            stream.flush()
        done = min((part.stat().st_size - len(header)) // row_bytes, shape[0])
        done = done if done == shape[0] else max(0, done) // block * block
        digest = hashlib.sha256(header)
        end = len(header) + done * row_bytes
        for start in range(len(header), end, CHUNK):
            stream.seek(start)
            digest.update(stream.read(min(CHUNK, end - start)))
        stream.seek(end)
        stream.truncate()
        with progress(None, file.description, shape[0], " images", done) as bar:

            def append(rows):
                stream.write(rows)
                stream.flush()
                digest.update(rows)
                bar.update(len(rows))

            with ThreadPoolExecutor(1) as writer:  # so that who produces the rows never waits for the disk
                written = writer.submit(append, np.empty((0, *shape[1:]), dtype))
                for start in range(done, shape[0], block):
                    stop = min(start + block, shape[0])
                    rows = np.ascontiguousarray(produce(start, stop), dtype)
                    if rows.shape != (stop - start, *shape[1:]):
                        raise ValueError(f"rows {start} to {stop} have the shape {rows.shape}")
                    written.result()
                    written = writer.submit(append, rows)
                written.result()
    return digest.hexdigest()


def existing_folder(path):
    """The nearest folder above `path` that is there."""
    return next(folder for folder in Path(path).absolute().parents if folder.is_dir())


def check_space(folder, needed, what):
    """Raise BadInput where `folder` has not `needed` bytes (and a little more) free."""
    free = shutil.disk_usage(folder).free
    if needed * 1.02 > free:
        raise BadInput(
            f"There are {free / 1e9:.1f} GB free in {folder}, and {needed / 1e9:.1f} GB are needed for "
            f"{what}; free some space, name a folder on another disk by --cache or --out, or keep no "
            "cache by --cache none."
        )
