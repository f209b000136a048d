"""What is written to disk: whole or not at all, by one process at a time.

Small files are written beside their place and renamed into it. Large arrays grow block by block in
<name>.part and are renamed when they are whole, so an interrupted one resumes at its last whole block.
"""

import contextlib
import csv
import io
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from transfer.screen import BadInput, progress


def sync(path):
    """Wait until a file's content has reached the disk, so that a power failure cannot take it."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_atomically(path, content):
    """Write str or bytes to `path` so that a reader finds the old file or the whole new one."""
    part = Path(f"{path}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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
        raise BadInput(f"{path} is damaged ({error}); delete its folder and run again.") from None


def write_csv(path, rows):
    """Write a list of dicts with the same keys as CSV, atomically."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue())


def read_csv(path, advice):
    """All rows of a CSV file as lists of str, without a BOM. BadInput, which ends with `advice`, where it
    is not CSV in UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} is not a CSV file in UTF-8 ({error}); {advice}.") from None


def lock_of(path):
    """The lock of a file or folder: a hidden file beside it, which stays. It is released when the process
    that holds it ends, however that ends."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


@contextlib.contextmanager
def locked(path):
    """Hold the lock of `path`; where another process holds it, say so and wait for it to finish."""
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that is writing {path}", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class ArrayFile(NamedTuple):
    """A large array on disk."""

    path: Path  # .npy
    shape: tuple  # (n, ...)
    dtype: str
    description: str  # what is shown while it is made

    @property
    def size(self):
        """Bytes, without the header."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def ahead(function, items):
    """Yields function(item) for each of `items`; a thread works on the next one while one is used."""
    with ThreadPoolExecutor(1) as thread:
        waiting = None
        for item in items:
            following = thread.submit(function, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()


def make_array(file, blocks, block):
    """The array of an ArrayFile as a read-only memory map, made first where it is not there yet.
    blocks(starts) -> iterator over the arrays (`block` rows each, the last one what is left) that begin at
    the rows `starts`. BadInput where the disk has no room for it, or where the file is cut short."""
    path, part = file.path, Path(f"{file.path}.part")
    if not path.exists():
        check_space(path, file.size - (part.stat().st_size if part.exists() else 0), file.description)
        with locked(path):
            if not path.exists():  # else another process has just made it
                fill_array(part, file, blocks, block)
                sync(part)
                os.replace(part, path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise BadInput(f"{path} is damaged ({error}); delete it and run again.") from None
    return array.view(file.dtype)  # NumPy's header knows bfloat16 as two bytes of any kind


def fill_array(part, file, blocks, block):
    """Append what is missing of an ArrayFile to its `part`, block by block: in a writable memory map a full
    disk would crash, and the length of the file would not tell how far it is."""
    shape, dtype, stream = file.shape, np.dtype(file.dtype), io.BytesIO()
    layout = {"descr": dtype.str, "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(stream, layout)
    header, row_bytes = stream.getvalue(), dtype.itemsize * math.prod(shape[1:])
    part.touch()
    with open(part, "rb+") as stream:
        if stream.read(len(header)) != header:
            stream.seek(0)
            stream.truncate()
            stream.write(header)
            stream.flush()
        done = min((part.stat().st_size - len(header)) // row_bytes, shape[0])
        done = done if done == shape[0] else done // block * block
        stream.seek(len(header) + done * row_bytes)
        stream.truncate()
        with progress(None, file.description, shape[0], " images", done) as bar:

            def append(rows):
                stream.write(np.ascontiguousarray(rows, dtype))
                stream.flush()
                bar.update(len(rows))

            for _ in ahead(append, blocks(range(done, shape[0], block))):
                pass  # a thread writes, so that whoever makes the rows never waits for the disk


def free_space(path):
    """Bytes free where the file `path` is or would be."""
    return shutil.disk_usage(next(place for place in Path(path).absolute().parents if place.is_dir())).free


def check_space(path, needed, what):
    """Raise BadInput where there are not `needed` bytes (and a little more) free for the file `path`."""
    free = free_space(path)
    if needed * 1.02 > free:
        space = f"{free / 1e9:.1f} GB free in {Path(path).parent}, and {what} needs {needed / 1e9:.1f} GB"
        advice = "free some space, name a folder on another disk with --cache or --out, or use --cache none"
        raise BadInput(f"There are {space}; {advice}.")
