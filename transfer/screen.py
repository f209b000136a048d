"""What is printed: one sentence for bad input, the configuration, tables, how far long work is."""

import os
import signal
import sys
from pathlib import Path

from tqdm import tqdm

SHOWN_AFTER = 2  # seconds until work is worth a line of progress
LINE_EVERY = 20  # seconds between two such lines in a log file


class BadInput(Exception):
    """Input that cannot be used: one sentence that names the thing and the mend."""


class WorkerLost(BadInput):
    """Another worker does not answer any more; its engine can only be left by ending the process."""


def run_script(main):
    """Call `main`; bad input ends with one sentence and status 2, Ctrl-C with status 130."""
    script = Path(sys.argv[0]).name

    def stop(*_):  # at once: an exception that meets an engine's own code aborts the process
        report_failure(f"\n{script}: interrupted; the same command goes on where it stopped.", 130)
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        signal.signal(signal.SIGINT, stop)
    try:
        main()
    except WorkerLost as error:
        report_failure(f"{script}: error: {error}.", 2)
        os._exit(2)  # an engine would wait for that worker at exit
    except BadInput as error:
        sys.exit(report_failure(f"{script}: error: {error}", 2))
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())  # h5py's carry a message alone
        mend = "mend that (free space, rights, another folder), and the same command goes on"
        report_failure(f"{script}: error: cannot use{where}: {reason}; {mend}.", 2)
        sys.stdout.flush()
        os._exit(2)  # HDF5 crashes where it closes a file, at exit, that a full disk did not take


def report_failure(message, status):
    """Print `message` to stderr; returns the exit status."""
    print(message, file=sys.stderr, flush=True)
    return status


def print_configuration(args, dataset, computes_on=None):
    """The first thing on screen: the dataset's notice, then every setting."""
    print_notice(dataset.notice)
    print(f"{Path(sys.argv[0]).name}: resolved configuration")
    counts = ", ".join(f"{len(split.files)} {name}" for name, split in dataset.splits.items())
    about = {"dataset": f"{dataset.name}: {counts} images, {len(dataset.labels)} classes"}
    about |= {"computes on": computes_on} if computes_on else {}
    for key, value in [*sorted(vars(args).items()), *about.items()]:
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


class LogLines:
    """stderr for tqdm where no terminal rewrites a line: each state is a line of its own."""

    def write(self, text):
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self):
        sys.stderr.flush()


def progress(iterable, description, total=None, unit=" batches", done=0):
    """A tqdm bar, shown where the work takes over SHOWN_AFTER seconds; lines now and then in a log file."""
    where = {}
    if not sys.stderr.isatty():
        shown = "{desc}: {n_fmt} of {total_fmt}" + unit + ", {rate_noinv_fmt}, {remaining} left"
        where = {"mininterval": LINE_EVERY, "miniters": 1, "file": LogLines(), "bar_format": shown}
    return tqdm(iterable, description, total, unit=unit, delay=SHOWN_AFTER, initial=done, **where)
