"""What is written to disk: whole or not at all, by one process at a time.

Small files are written beside their place and renamed into it. Large arrays grow block by block in
<name>.part and are renamed when they are whole, so an interrupted one resumes at its last whole
block.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from transfer.console import BadInput, progress

MAX_NAME = 120  # bytes of a part of a file's name; file systems take 255 for all of it


def sync(path):
    """Wait until a file's content has reached the disk, so that a power failure cannot take it;
    where the file system does not offer that, go on."""
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise


@contextlib.contextmanager
def naming_errors(path):
    """Within it, an error of the disk that does not say where names `path`."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def printable(name):
    """A file's name as it is written and shown: a byte that is not UTF-8, a lone surrogate in
    Python, as its escape, which JSON reads back as that surrogate."""
    return name.encode("utf-8", "backslashreplace").decode()


def short_name(text):
    """The beginning of `text` as part of a file's name."""
    return printable(text).replace("\\", "-").encode()[:MAX_NAME].decode(errors="ignore")


def write_atomically(path, content):
    """Write str or bytes to `path` so that a reader finds the old file or the whole new one."""
    part = Path(f"{path}.part")
    if isinstance(content, str):
        content = printable(content).encode()
    with naming_errors(path):
        part.write_bytes(content)
        sync(part)
        os.replace(part, path)


def write_json(path, content):
    """Write `content` as JSON, atomically."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path, missing=None):
    """The content of a JSON file that one of the scripts wrote; `missing` where there is none.
    BadInput where it is damaged, or where there is none and it has to be."""
    if missing is not None and not Path(path).exists():
        return missing
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"There is no {path}; the folder is not one that these scripts wrote."
        ) from None
    except ValueError as error:
        raise BadInput(f"{path} is damaged ({error}); delete its folder and run again.") from None


def write_csv(path, rows):
    """Write a list of dicts with the same keys as CSV, atomically."""
    # Python before 3.11.9 and 3.12.3 puts a carriage return into quotes only if lines end with one
    lines = []
    writer = csv.DictWriter(SimpleNamespace(write=lines.append), rows[0], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, "".join(line.removesuffix("\r\n") + "\n" for line in lines))


def read_csv(path, advice):
    """The rows of a CSV file that are not empty as lists of str, without a BOM, separated by commas
    or, as spreadsheets write, semicolons or tabs. BadInput, which ends with `advice`, where it is
    missing or no UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            delimiter = next((mark for mark in ",;\t" if mark in first), ",")
            file.seek(0)
            return [row for row in csv.reader(file, delimiter=delimiter, strict=True) if any(row)]
    except FileNotFoundError:
        raise BadInput(f"There is no {path}; {advice}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8 ({error}); {advice}.") from None


def acquire(path, timeout=-1):
    """Take the lock of a file or folder, a hidden file beside it, to be held in a `with` block;
    released when its process ends. Raises filelock.Timeout where another process holds it for
    `timeout` seconds (for ever: -1), and OSError, which names the folder, where its file system has
    no locks."""
    path = Path(path).absolute()
    with naming_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_name(f".{path.name}.lock")).acquire(timeout)


@contextlib.contextmanager
def locked(path):
    """Hold the lock of `path`; where another process holds it, say so and wait for it to finish."""
    try:
        held = acquire(path, timeout=0)
    except Timeout:
        print(f"Waiting for another process that is writing {path}", flush=True)
        held = acquire(path)
    with held:
        yield


class ArrayFile(NamedTuple):
    """A large array on disk."""

    path: Path  # .npy
    shape: tuple  # (n, ...)
    dtype: str
    description: str  # what is shown while it is made

    @property
    def part(self):
        """Where it grows until it is whole."""
        return Path(f"{self.path}.part")

    @property
    def missing(self):
        """Bytes that are still to be written, without the header."""
        if self.path.exists():
            return 0
        written = self.part.stat().st_size if self.part.exists() else 0
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize - written


class Rows:
    """Some rows of an array, none of them copied."""

    def __init__(self, array, rows):
        self.array = array
        self.rows = rows
        self.shape = (len(rows), *array.shape[1:])
        self.filename = getattr(array, "filename", None)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return self.array[self.rows[rows]]


def prefetch(function, items):
    """Yields function(item) for each of `items`; a thread works on the next one while one is
    used."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for item in items:
            following = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()


def build_or_load_array(file, blocks, block):
    """The array of an ArrayFile as a read-only memory map, made first where it is not there yet.
    blocks(starts) -> iterator over the arrays (`block` rows each, the last one what is left) that
    begin at the rows `starts`. BadInput where the disk has no room for it, or where the file is cut
    short."""
    path = file.path
    if not path.exists():
        free = free_space(path)
        needed = 1.02 * file.missing
        if needed > free:
            raise BadInput(
                f"Not enough disk space for {file.description}: {needed / 1e9:.1f} GB needed,"
                f" {free / 1e9:.1f} GB free in {path.parent}; free some, name a folder on another"
                " disk with --cache or --out, or use --cache none."
            )
        with locked(path), naming_errors(path):
            if not path.exists():  # else another process has just made it
                fill_array(file, blocks, block)
                sync(file.part)
                os.replace(file.part, path)
    try:
        array = read_array(path)
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path} is damaged ({error}); delete it and run again.") from None
    return array.view(file.dtype)  # NumPy's header knows bfloat16 as two bytes of any kind


def read_array(path):
    """The array in a .npy file as a read-only memory map; in memory, whole, where the file system
    has no maps. Errors as from numpy.load."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        array = np.load(path, allow_pickle=False).view(np.memmap)
        array.filename = path  # as that of a map
        return array


def fill_array(file, blocks, block):
    """Append what is missing of an ArrayFile to its part, block by block: in a writable memory map
    a full disk would crash, and the length of the file would not tell how far it is."""
    count, *row_shape = file.shape
    dtype = np.dtype(file.dtype)
    row_bytes = dtype.itemsize * math.prod(row_shape)
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": dtype.str, "fortran_order": False, "shape": file.shape}
    )
    header = stream.getvalue()

    with open(file.part, "ab+") as stream:
        # begin anew where the part is of another array
        stream.seek(0)
        if stream.read(len(header)) != header:
            stream.truncate(0)
            stream.write(header)

        # else go on after the last whole block
        done = (stream.seek(0, os.SEEK_END) - len(header)) // row_bytes
        done -= done % block
        stream.truncate(len(header) + done * row_bytes)

        def append(rows):
            stream.write(np.ascontiguousarray(rows, dtype))
            stream.flush()
            return len(rows)

        # a thread writes, so that whoever makes the rows never waits for the disk
        with progress(None, file.description, count, " images", done) as bar:
            for written in prefetch(append, blocks(range(done, count, block))):
                bar.update(written)


def free_space(path):
    """Bytes free where the file `path` is or would be."""
    folder = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
    return shutil.disk_usage(folder).free
