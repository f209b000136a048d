"""Kill the scripts at random moments and go on: is anything lost?

    python benchmarks/interrupts.py --kills 100

Each command runs once without interruption. Then, in a new folder, it is started, killed (SIGKILL) at a
random moment after its start-up, and started again, four times, until it is let to end. After each kill
every file under its own name must be whole (JSON and CSV parse, archives and arrays are whole); at the end
the metrics, the history, the weights and the features must be those of the uninterrupted run, bit by bit.
It runs on a small demo dataset in a temporary folder; about 15 seconds a kill on two cores.
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


def run(command, folder, seconds=None):
    """Run a script in `folder`; kill it `seconds` after its start-up. Returns (killed, s after that)."""
    script, *flags = command
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-u", ROOT / script, *flags], cwd=folder, **piped)
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
        sys.exit(f"{' '.join(command)} failed in {folder}:\n{output}")
    return False, time.monotonic() - begin


def check_whole(folder):
    """Raise where a file under its own name is not whole."""
    for path in [
        *folder.rglob("runs/**/*"),
        *folder.rglob("features/**/*"),
        *folder.rglob("data/cache/*"),
    ]:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".csv":
            widths = {len(row) for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8")))}
            if len(widths) != 1:
                raise ValueError(f"{path} is torn")
        elif path.name in ("model.keras", "pipeline.skops"):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise ValueError(f"{path} is torn")
        elif path.suffix == ".npy":
            np.load(path, mmap_mode="r", allow_pickle=False)


def content(folder):
    """What a command leaves, by name, without times and compression: {file: bytes or arrays}."""
    import h5py

    found = {}
    for path in sorted(folder.glob("runs/*/*")) + sorted(folder.glob("features/*/*.npy")):
        name = str(path.relative_to(folder))
        if path.name in ("metrics.json", "history.csv", "classifiers.csv") or path.suffix == ".npy":
            found[name] = path.read_bytes()
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as file:
                weights = h5py.File(io.BytesIO(file.read()), "r")

            def take(key, item, name=name):
                if isinstance(item, h5py.Dataset) and not key.startswith("optimizer"):
                    found[f"{name}:{key}"] = item[()].tobytes()

            weights.visititems(take)
        elif path.suffix == ".skops":
            with zipfile.ZipFile(path) as archive:
                arrays = [info for info in archive.infolist() if info.filename.endswith("npy")]
                found[name] = b"".join(sorted(map(archive.read, arrays)))
    return found


def phase(folder):
    """What a killed command was at, by what it left."""
    parts = [path.name for path in folder.rglob("*.part")]
    if parts:
        return "writing " + ("features" if "features" in str(parts) else parts[0].split("-")[-1])
    states = [json.loads(path.read_text()) for path in folder.glob("runs/*/resume/state.json")]
    if states:
        return f"stage {states[0]['stage']}"
    if list(folder.glob("runs/*/classifiers.json")):
        return "grid"
    return "after the end" if list(folder.glob("runs/*/metrics.json")) else "before the first epoch"


def kill_run(command, folder, seconds):
    """Kill a command that takes so many seconds KILLS_A_RUN times, let it end, and return the `phase` of
    each kill."""
    fell = []
    for _ in range(KILLS_A_RUN):
        killed, _ = run(command, folder, random.uniform(0, seconds * 0.6))
        check_whole(folder)
        fell += [phase(folder)] * killed
        if list(
            folder.glob("runs/*/metrics.json")
        ):  # a kill may fall after the end; again is a new run
            return fell
    run(command, folder)
    check_whole(folder)
    return fell


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="default: %(default)s")
    args = parser.parse_args()
    random.seed(args.seed)
    names = args.commands.split(",")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        write_demo(work / "data" / "demo", per_class=6)
        expected, seconds = {}, {}
        for name in names:
            folder = work / name
            shutil.copytree(work / "data", folder / "data")
            command = (*COMMANDS[name], "--data", "data/demo")
            _, seconds[name] = run(command, folder)
            expected[name] = content(folder)
            print(
                f"{name}: {seconds[name]:.1f} s uninterrupted, {len(expected[name])} results",
                flush=True,
            )
        kills, moments, runs = 0, collections.Counter(), 0
        while kills < args.kills:
            name = names[runs % len(names)]
            folder = work / f"{name}-{runs}"
            shutil.copytree(work / "data", folder / "data", copy_function=shutil.copy2)
            shutil.rmtree(folder / "data" / "cache", ignore_errors=True)
            command = (*COMMANDS[name], "--data", "data/demo")
            fell = kill_run(command, folder, seconds[name])
            kills += len(fell)
            moments.update(f"{name}, {moment}" for moment in fell)
            found = content(folder)
            wrong = [key for key in expected[name] if found.get(key) != expected[name][key]]
            if wrong or len(list(folder.glob("runs/[!.]*"))) != 1:
                kept = Path("interrupts-failure")
                shutil.copytree(work / name, kept / "expected")
                shutil.copytree(folder, kept / "found")
                sys.exit(f"{command}: {len(wrong)} results differ (see {kept}/): {wrong[:5]}")
            print(f"{kills} kills: {name} ended with the same {len(found)} results", flush=True)
            shutil.rmtree(folder)
            runs += 1
    print(f"\n{kills} kills in {runs} runs, nothing lost. Where they fell:")
    for moment, count in sorted(moments.items()):
        print(f"  {count:4d}  {moment}")


if __name__ == "__main__":
    main()
