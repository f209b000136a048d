"""What is printed of errors of the disk."""

import errno

import pytest

from transfer.console import describe_error


@pytest.mark.parametrize(
    ("number", "sentence"),
    [
        (errno.ENOSPC, "cannot use a.npy: No space left on device; free some space there"),
        (errno.EACCES, "cannot use a.npy: Permission denied; change its rights"),
        (errno.ENAMETOOLONG, "cannot use a.npy: File name too long; choose a shorter name"),
        (errno.EISDIR, "cannot use a.npy: Is a directory; check that it is there"),
    ],
)
def test_an_error_of_the_disk_says_what_to_do(number, sentence):
    said = describe_error(OSError(number, "", "a.npy"))
    assert said.startswith(sentence)
    assert said.endswith(", then run the same command again to resume.")


def test_an_error_of_hdf5_is_understood_by_its_message():
    said = describe_error(OSError("Can't write data (file write failed: errno = 28, ...)"))
    assert said.startswith("cannot use a file: No space left on device; free some space")
