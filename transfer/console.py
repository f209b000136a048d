"""What is printed: one sentence for bad input, the configuration, tables, progress of long work."""

import builtins
import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tqdm import tqdm

SHOWN_AFTER = 2  # seconds until work is worth a line of progress
LINE_EVERY = 20  # seconds between two such lines in a log file
MAKE_SPACE = "free some space there, or name a folder on another disk with --cache or --out"
GET_ACCESS = "change its rights, or name another folder with --cache, --out or --data"
GET_LOCKS = (
    "its file system has no locks, which keep two commands apart: name a folder on another disk"
    " with --cache or --out"
)
REMEDIES = {
    errno.ENOSPC: MAKE_SPACE,
    errno.EDQUOT: MAKE_SPACE,
    errno.EFBIG: MAKE_SPACE,
    errno.EACCES: GET_ACCESS,
    errno.EPERM: GET_ACCESS,
    errno.EROFS: GET_ACCESS,
    errno.ENOLCK: GET_LOCKS,
    errno.ENAMETOOLONG: "choose a shorter name",
}
OTHER_REMEDY = "check that it is there and can be read and written"


class BadInput(Exception):
    """Input that cannot be used: one sentence that names the thing and what to do."""


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name
    in_notebook = hasattr(builtins, "get_ipython")  # whose process, and Ctrl-C, is the user's
    os.environ["MPLBACKEND"] = "Agg"  # that of a notebook may not be installed here
    prepare_streams()
    # a shell may have Ctrl-C ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and not in_notebook:
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
        if in_notebook:
            sys.exit(2)
        os._exit(2)  # HDF5 crashes at exit where it closes a file that a full disk cut short


def prepare_streams():
    """Make standard output and error show whatever a class or a file is called. A stream that is
    closed becomes the null device: else a file that is opened would get its number, and its lines.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(stream, "reconfigure"):  # a notebook's has not, and shows everything
            stream.reconfigure(errors="backslashreplace")


def stop_on_control_c(message):
    """Let Ctrl-C print `message` and end this process at once, with status 130."""
    terminal = os.dup(2)  # as `only_if_it_fails` turns the other one away

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
def only_if_it_fails(title):
    """Keeps what is printed on standard error within it, by libraries that are loaded. Where that
    ends with an exception, or aborts this process, it is shown, under the line `title`."""
    if not shutil.which("tail"):
        yield
        return

    # `tail` prints when its input ends, as the end of this process makes it, too
    terminal = os.dup(2)
    with subprocess.Popen(["tail", "-n500"], stdin=subprocess.PIPE, stdout=terminal) as keeper:
        os.dup2(keeper.stdin.fileno(), 2)
        os.write(2, f"{title}\n".encode())
        try:
            yield
            keeper.kill()
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def print_configuration(args, dataset, **more):
    """The first thing on screen: the dataset's notice, then every setting, and `more`."""
    counts = ", ".join(f"{len(split.files)} {name}" for name, split in dataset.splits.items())
    about = f"{dataset.name}: {counts} images, {len(dataset.labels)} classes"
    settings = {**vars(args), "dataset": about, **more}

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


def flags_of(settings):
    """Settings, {name: value}, as words of a command; left out are those without a value."""
    words = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def print_next(script, **settings):
    """Print the command that comes next, so that it can be pasted whatever its paths hold."""
    print(f"Next: {shlex.join(['python', script, *flags_of(settings)])}")


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
