"""Digests of files, read once: digests.py."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from transfer.digests import read_digests

FILE = "wood/\udcf6 ö.jpg"
LONG_AGO = 10**18  # ns


@pytest.fixture
def picture(workdir):
    """The one file in pictures/."""
    path = Path("pictures", FILE)
    path.parent.mkdir(parents=True)
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def read(picture, content, changed=LONG_AGO, cache="cache"):
    """What is taken for the digest of FILE once its bytes and its time are these."""
    picture.write_bytes(content)
    os.utime(picture, ns=(changed, changed))
    return read_digests("pictures", [FILE], cache)[FILE]


def test_a_file_is_read_again_once_it_has_another_time(picture):
    read(picture, b"one")
    assert read(picture, b"two") == sha256(b"one")
    assert read(picture, b"two", LONG_AGO + 10**9) == sha256(b"two")


def test_a_file_that_has_just_changed_may_do_so_again_within_one_time_stamp(picture):
    now = time.time_ns()
    read(picture, b"one", now)
    assert read(picture, b"two", now) == sha256(b"two")


@pytest.mark.parametrize("cache", ["none", "file", "file/below"])
def test_where_nothing_can_be_kept_all_is_read_each_time(picture, cache):
    Path("file").touch()
    read(picture, b"one", cache=cache)
    assert read(picture, b"two", cache=cache) == sha256(b"two")
    assert sorted(os.listdir()) == ["file", "pictures"]
