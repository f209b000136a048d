"""Kill the scripts at random moments and go on: is anything lost?

    python benchmarks/interrupts.py --kills 100

Each command runs once without interruption. Then, in a new folder, it is started, killed (SIGKILL)
at a random moment after its start-up, and started again, four times, until it may end. After each
kill every file under its own name must be whole (JSON and CSV parse, archives and arrays too); at
the end the metrics, the history, the weights and the features must be those of the uninterrupted
run, bit by bit. It runs on the demo dataset, in a temporary folder.
"""

import collections
import csv
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from measure import ROOT

from transfer.demo import write_demo
from transfer.flags import script_parser

KILLS_A_RUN = 4
FAST = ("--image-size", "32", "--epochs", "3", "--fine-tune-epochs", "2")
COMMANDS = {
    "finetune": ("finetune.py", "--unfreeze", "stepped", "--final-augment", *FAST),
    "pretrain": ("train_pretrained.py", "--top", "gap", "--image-size", "32", "--epochs", "4"),
    "forest": ("random_forest.py", "--leaf", "2", "--trees", "50", "--image-size", "32"),
    "grid": ("random_forest.py", "--grid", "--image-size", "32"),
}
TABLES = ("metrics.json", "history.csv", "classifiers.csv")


def start_and_kill(name, folder, seconds=None):
    """Run a command of COMMANDS in `folder`; kill it `seconds` after its start-up.

    Returns (whether it was killed, how long it ran after its start-up).
    """
    script, *flags = COMMANDS[name]
    command = [sys.executable, "-u", ROOT / script, *flags, "--data", "data/demo"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for line in process.stdout:  # the configuration is printed when all imports are done
        if "resolved configuration" in line:
            break
    begin = time.monotonic()
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True, seconds
    if process.returncode:
        sys.exit(f"{name} failed in {folder}:\n{output}")
    return False, time.monotonic() - begin


def check_whole(folder):
    """Raise where a file of results, features or the cache is not whole under its own name."""
    for path in folder.rglob("*"):
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            table = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
            if len({len(row) for row in table}) != 1:
                raise ValueError(f"{path} is torn")
        elif path.name in ("model.keras", "pipeline.skops"):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise ValueError(f"{path} is torn")
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)


def read_results(folder):
    """What a command leaves, without times: {file: its bytes, or those of an archive's arrays}."""
    found = {}
    for path in [*folder.glob("runs/*/*"), *folder.glob("features/*/*.npy")]:
        name = str(path.relative_to(folder))
        if path.name in TABLES or path.suffix == ".npy":
            found[name] = path.read_bytes()
        elif path.suffix in (".keras", ".skops"):
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.namelist() if m.endswith((".h5", ".npy"))]
                found[name] = sorted(map(archive.read, members))
    return found


def stage_of(folder):
    """What a killed command was at, by what it left."""
    for part in folder.rglob("*.part"):
        return f"writing into {part.relative_to(folder).parts[0]}/"
    for state in folder.glob("runs/*/resume/state.json"):
        return f"stage {json.loads(state.read_text())['stage']}"
    if any(folder.glob("runs/*/classifiers.json")):
        return "grid"
    if has_ended(folder):
        return "after the end"
    return "before the first epoch"


def has_ended(folder):
    return any(folder.glob("runs/*/metrics.json"))


def interrupt_run(name, folder, seconds):
    """Kill a command that takes so many seconds KILLS_A_RUN times, then let it end.

    Returns what it was at when each kill fell (`stage_of`).
    """
    fell = []
    for _ in range(KILLS_A_RUN):
        killed, _ = start_and_kill(name, folder, random.uniform(0, seconds * 0.6))
        check_whole(folder)
        if killed:
            fell.append(f"{name}, {stage_of(folder)}")
        if has_ended(folder):  # a kill may fall after the end; again is a new run
            return fell
    start_and_kill(name, folder)
    check_whole(folder)
    return fell


def compare_results(name, found, expected, folder):
    """Exit where an interrupted run ended with other results than expected; keep both folders."""
    wrong = [key for key in expected if found.get(key) != expected[key]]
    if wrong or len(list(folder.glob("runs/[!.]*"))) != 1:
        kept = Path("interrupts-failure")
        shutil.copytree(folder.parent / name, kept / "expected")
        shutil.copytree(folder, kept / "found")
        sys.exit(f"{name}: {len(wrong)} results differ (see {kept}/): {wrong[:5]}")


def main():
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=100, help="number of kills (default: %(default)s)")
    add("--commands", default=",".join(COMMANDS), help="default: %(default)s")
    args = parser.parse_args()
    random.seed(0)
    names = args.commands.split(",")

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_demo(work / "data" / "demo")

        # each command once without interruption
        expected = {}
        seconds = {}
        for name in names:
            folder = work / name
            shutil.copytree(work / "data", folder / "data")
            _, seconds[name] = start_and_kill(name, folder)
            expected[name] = read_results(folder)
            print(f"{name}: {seconds[name]:.1f} s, {len(expected[name])} results", flush=True)

        # then with kills, in turn
        moments = collections.Counter()
        runs = 0
        while moments.total() < args.kills:
            name = names[runs % len(names)]
            folder = work / f"{name}-{runs}"
            shutil.copytree(work / "data", folder / "data")
            moments.update(interrupt_run(name, folder, seconds[name]))
            compare_results(name, read_results(folder), expected[name], folder)
            print(f"{moments.total()} kills: {name} ended with the same results", flush=True)
            shutil.rmtree(folder)
            runs += 1

    print(f"\n{moments.total()} kills in {runs} runs, nothing lost. Where they fell:")
    for moment, count in sorted(moments.items()):
        print(f"  {count:4d}  {moment}")


if __name__ == "__main__":
    main()
