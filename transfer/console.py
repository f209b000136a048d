"""What is printed: one sentence for bad input, the configuration, tables, the progress of long work."""

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
SPACE = "free some space there, or name a folder on another disk with --cache or --out"
REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), SPACE)
REMEDIES |= dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "change its rights, or name another"
)
REMEDIES[errno.ENAMETOOLONG] = "choose a shorter name"


class BadInput(Exception):
    """Input that cannot be used: one sentence that names the thing and what to do."""


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name

    terminal = os.dup(2)  # as `without_startup_lines` turns the other one away

    def stop(*_):  # at once: an exception raised inside an engine's own code aborts the process
        os.write(
            terminal, f"\n{script}: interrupted; run the same command again to resume.\n".encode()
        )
        os._exit(130)

    for stream in (sys.stdout, sys.stderr):  # a class or file may have a name that they cannot show
        stream.reconfigure(errors="backslashreplace")

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, stop)
    try:
        main()
    except BadInput as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output, `head` perhaps, has enough
        os._exit(141)
    except OSError as error:
        number = re.search(r"errno = (\d+)", str(error))  # h5py's carry a message alone
        number = int(number[1]) if number else error.errno
        where = f" {error.filename}" if error.filename else ""
        reason = os.strerror(number) if number else " ".join(str(error).split())
        advice = f"{REMEDIES.get(number, 'fix this')}, then run the same command again to resume."
        print(
            f"{script}: error: cannot use{where}: {reason}; {advice}", file=sys.stderr, flush=True
        )
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(2)  # HDF5 crashes at exit where it closes a file that a full disk cut short


@contextlib.contextmanager
def without_startup_lines():
    """Hides what TensorFlow prints while it is imported, before any log level applies."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def print_configuration(args, dataset, computes_on=None):
    """The first thing on screen: the dataset's notice, then every setting."""
    print_notice(dataset.notice)
    print(f"{Path(sys.argv[0]).name}: resolved configuration")
    counts = ", ".join(f"{len(split.files)} {name}" for name, split in dataset.splits.items())
    more = {"dataset": f"{dataset.name}: {counts} images, {len(dataset.labels)} classes"}
    more |= {"computes on": computes_on} if computes_on else {}
    for key, value in [*sorted(vars(args).items()), *more.items()]:
        shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
        print(f"  {key:<28}{shown}")
    print(flush=True)


def print_notice(notice):
    """A frame around the sentence of a dataset that is not real; nothing where there is none."""
    if notice:
        print("\n".join(["=" * 96, f"  {notice}", "=" * 96]), flush=True)


def print_table(header, rows):
    """Rows of cells, the first column left-aligned, the others right-aligned."""
    table = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [row[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(row[1:], widths[1:])]
        print("  " + "  ".join(cells).rstrip())


def percent(fraction):
    """A fraction as the study prints accuracies; '-' for None."""
    return "-" if fraction is None else f"{100 * fraction:.2f}%"


def progress(iterable, description, total=None, unit=" batches", done=0):
    """A tqdm bar for work longer than SHOWN_AFTER seconds; where no terminal rewrites a line, lines."""
    where = {}
    if not sys.stderr.isatty():
        shown = "{desc}: {n_fmt} of {total_fmt}" + unit + ", {rate_noinv_fmt}, {remaining} left"
        write = lambda text: text.strip() and print(text.strip(), file=sys.stderr)  # noqa: E731
        lines = SimpleNamespace(write=write, flush=sys.stderr.flush)
        where = {"mininterval": LINE_EVERY, "miniters": 1, "file": lines, "bar_format": shown}
    return tqdm(iterable, description, total, unit=unit, delay=SHOWN_AFTER, initial=done, **where)
