"""What is printed of errors of the disk and while libraries are loaded, and where to."""

import builtins
import errno
import io
import subprocess
import sys

import pytest
from conftest import ROOT

from transfer.console import describe_error, run_script


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


@pytest.mark.parametrize(
    ("ending", "status", "shown"),
    [
        ("pass", 0, ["end"]),
        ("raise TypeError('odd')", 1, ["title", "why", "TypeError: odd"]),
        ("os.abort()", -6, ["title", "why"]),
    ],
)
def test_what_libraries_print_is_shown_where_they_fail(ending, status, shown):
    program = f"""
import os, sys
from transfer.console import only_if_it_fails
with only_if_it_fails("title"):
    os.write(2, b"why\\n")
    {ending}
print("end", file=sys.stderr)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == status
    assert [line for line in lines if not line.startswith((" ", "Traceback"))] == shown


def test_a_stream_of_a_notebook_or_a_closed_one_is_no_error(monkeypatch):
    """A notebook's streams cannot be set up; neither its process nor its Ctrl-C is the script's."""
    monkeypatch.setattr(builtins, "get_ipython", None, raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)

    def main():
        print("shown")
        print(sys.stderr.isatty(), file=sys.stderr)
        raise OSError(errno.ENOSPC, "")

    with pytest.raises(SystemExit, match="2"):
        run_script(main)
