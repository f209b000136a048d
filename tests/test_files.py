"""Arrays that grow on disk: files.py."""

import errno
import fcntl
import mmap
import os

import numpy as np
import pytest

from transfer.console import BadInput, describe_error
from transfer.files import ArrayFile, build_or_load_array, locked, write_atomically

WHOLE = np.random.default_rng(0).normal(size=(23, 4, 3)).astype("float32")


@pytest.fixture
def file(tmp_path):
    """The file of the array WHOLE."""
    return ArrayFile(tmp_path / "a.npy", WHOLE.shape, "float32", "test")


def test_an_array_goes_on_at_its_last_whole_block(file):
    asked = []  # rows at which the blocks begin that were asked for

    def blocks(starts):
        for start in starts:
            asked.append(start)
            if len(asked) == 4:
                raise KeyboardInterrupt
            yield WHOLE[start : start + 5]

    # killed while a block was being written, in its third row
    with pytest.raises(KeyboardInterrupt):
        build_or_load_array(file, blocks, 5)
    assert not file.path.exists()
    with open(file.part, "ab") as stream:
        stream.write(bytes(100))

    # resumed, then only loaded
    for _ in range(2):
        np.testing.assert_array_equal(build_or_load_array(file, blocks, 5), WHOLE)
        assert asked == [0, 5, 10, 15, 15, 20]

    # cut short
    for length in (1000, 50, 0):
        os.truncate(file.path, length)
        with pytest.raises(BadInput, match=r"a\.npy is damaged"):
            build_or_load_array(file, None, 5)


def test_a_part_of_another_shape_is_begun_anew(file):
    file.part.write_bytes(b"\x93NUMPY something else, and longer than the header" * 50)

    found = build_or_load_array(file, lambda _: [WHOLE], len(WHOLE))
    np.testing.assert_array_equal(found, WHOLE)


def refusing(number):
    """A function of the system that always fails with this errno."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_system_without_maps_or_syncing_does(file, monkeypatch):
    """An array is read whole then, and still knows its file; other errors are errors."""
    monkeypatch.setattr(mmap, "mmap", refusing(errno.ENODEV))
    monkeypatch.setattr(os, "fsync", refusing(errno.EINVAL))
    found = build_or_load_array(file, lambda _: [WHOLE], len(WHOLE))
    np.testing.assert_array_equal(found, WHOLE)
    assert found.filename == file.path

    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(file.path, "new")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    with pytest.raises(OSError) as error, locked(tmp_path / "run"):
        pass
    expected = f"cannot use {tmp_path}: No locks available; its file system has no locks"
    assert expected in describe_error(error.value)
