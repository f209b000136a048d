"""What is printed: one sentence for bad input, the configuration, tables, progress of long work."""

import contextlib
import errno
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

SHOWN_AFTER = 2  # seconds until work is worth a line of progress
LINE_EVERY = 20  # seconds between two such lines in a log file
MAKE_SPACE = "free some space there, or name a folder on another disk with --cache or --out"
GET_ACCESS = "change its rights, or name another"
REMEDIES = {
    errno.ENOSPC: MAKE_SPACE,
    errno.EDQUOT: MAKE_SPACE,
    errno.EFBIG: MAKE_SPACE,
    errno.EACCES: GET_ACCESS,
    errno.EPERM: GET_ACCESS,
    errno.EROFS: GET_ACCESS,
    errno.ENAMETOOLONG: "choose a shorter name",
}
OTHER_REMEDY = "check that it is there and can be read and written"


class BadInput(Exception):
    """Input that cannot be used: one sentence that names the thing and what to do."""


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):  # a class or file may have a name that they cannot show
        stream.reconfigure(errors="backslashreplace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        stop_on_control_c(f"\n{script}: interrupted; run the same command again to resume.\n")

    try:
        main()
    except BadInput as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output, `head` perhaps, has enough
        os._exit(141)
    except OSError as error:
        print(f"{script}: error: {describe_error(error)}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(2)  # HDF5 crashes at exit where it closes a file that a full disk cut short


def stop_on_control_c(message):
    """Let Ctrl-C print `message` and end this process at once, with status 130."""
    terminal = os.dup(2)  # as `without_startup_lines` turns the other one away

    def stop(*_):  # an exception raised inside an engine's own code would abort the process
        os.write(terminal, message.encode())
        os._exit(130)

    signal.signal(signal.SIGINT, stop)


def describe_error(error):
    """The sentence for an OSError: what cannot be used, why, and what to do."""
    in_message = re.search(r"errno = (\d+)", str(error))  # all that h5py's errors carry
    number = int(in_message[1]) if in_message else error.errno
    reason = os.strerror(number) if number else " ".join(str(error).split())
    advice = f"{REMEDIES.get(number, OTHER_REMEDY)}, then run the same command again to resume"
    return f"cannot use {error.filename or 'a file'}: {reason}; {advice}."


@contextlib.contextmanager
def without_startup_lines():
    """Hides what TensorFlow prints while it is imported, before any log level applies."""
    sys.stderr.flush()
    terminal = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


def print_configuration(args, dataset, computes_on=None):
    """The first thing on screen: the dataset's notice, then every setting."""
    counts = ", ".join(f"{len(split.files)} {name}" for name, split in dataset.splits.items())
    about = f"{dataset.name}: {counts} images, {len(dataset.labels)} classes"
    settings = {**vars(args), "dataset": about}
    if computes_on:
        settings["computes on"] = computes_on

    print_notice(dataset.notice)
    print(f"{Path(sys.argv[0]).name}: resolved configuration")
    for name, value in sorted(settings.items()):
        print(f"  {name:<28}{value}")
    print(flush=True)


def print_notice(notice):
    """A frame around the sentence of a dataset that is not real; nothing where there is none."""
    if notice:
        frame = "=" * 96
        print(f"{frame}\n  {notice}\n{frame}", flush=True)


def print_table(header, rows):
    """Rows of cells, the first column left-aligned, the others right-aligned."""
    table = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        print(f"  {'  '.join(cells).rstrip()}")


def percent(fraction):
    """A fraction as the study prints accuracies; '-' for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f}%"


def progress(iterable, description, total=None, unit=" batches", done=0):
    """A tqdm bar for work longer than SHOWN_AFTER seconds, or where there is no terminal, lines."""
    shown = {"unit": unit, "delay": SHOWN_AFTER, "initial": done}
    if sys.stderr.isatty():
        return tqdm(iterable, description, total, **shown)

    def write(text):
        if text.strip():
            print(text.strip(), file=sys.stderr)

    text = "{desc}: {n_fmt} of {total_fmt}" + unit + ", {rate_noinv_fmt}, {remaining} left"
    lines = SimpleNamespace(write=write, flush=sys.stderr.flush)
    shown |= {"mininterval": LINE_EVERY, "miniters": 1, "file": lines, "bar_format": text}
    return tqdm(iterable, description, total, **shown)
