"""The tiny dataset that the tests run on: four mediums in MAMe's layout, 64 images of 48 pixels."""

import contextlib
import csv
import ctypes
import gc
import importlib
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# for the processes of pytest-xdist: memory is given back
os.environ.setdefault("MALLOC_ARENA_MAX", "2")

SHARED = ROOT.parent / "shared"
MEDIUMS = ["Bronze", "Oil on canvas", "Woodcut", "Woven fabric"]
COUNTS = {"train": 8, "val": 3, "test": 5}  # images a class; the first class has 2 more in test


def tiny_rows():
    """(file, medium, museum, split) of the tiny dataset."""
    rows = []
    for index, medium in enumerate(MEDIUMS):
        for split, count in COUNTS.items():
            if split == "test" and index == 0:
                count += 2
            for number in range(count):
                suffix = "jpg" if number % 2 else "jpeg"
                file = f"{split}.{index}.{number}.{suffix}"
                rows.append((file, medium, f"Museum {number % 2}", split))
    return rows


def write_tiny(root):
    """Write the tiny dataset into the new folder `root`."""
    from PIL import Image

    from transfer.demo import render_texture

    (root / "data_256").mkdir(parents=True)
    rows = tiny_rows()
    for file, medium, _, split in rows:
        number = int(file.split(".")[2])
        texture = render_texture(medium, (len(split), number))
        picture = Image.fromarray(texture).resize((48, 48))
        picture.save(root / "data_256" / file, "JPEG")

    # not in the order of the classes, as MAMe's own rows are not
    write_csv(root, np.random.default_rng(0).permutation(rows))
    labels = "".join(f"{index},{medium}\n" for index, medium in enumerate(MEDIUMS))
    (root / "MAMe_labels.csv").write_text(labels)
    settings = {
        "name": "tiny",
        "notice": "TINY DATASET of the tests.",
        "image_size": 32,
        "weights": "none",
        "batch_size": 16,
        "learning_rate": 1e-3,
        "epochs": 2,
        "fine_tune_epochs": 1,
        "pretrain_epochs": 1,
    }
    (root / "defaults.json").write_text(json.dumps(settings))


def write_csv(root, rows):
    lines = ["Image file,Medium,Museum,Museum-based instance ID,Subset,Width"]
    for file, medium, museum, split in rows:
        medium = medium.replace("Woven fabric", "Woven fabric ")  # MAMe's own quirk
        lines.append(f"{file},{medium},{museum},{file},{split},48.0")
    (root / "MAMe_dataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """A working folder for tests that ask for none: theirs is not the user's."""
    with contextlib.chdir(tmp_path_factory.mktemp("elsewhere")):
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make) -> the folder `name`, which make(folder) makes in the first process."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def give(name, make):
        folder = base / name
        part = base / f"{name}.part"
        with FileLock(base / f"{name}.lock"):
            if not folder.exists():
                part.mkdir()
                with contextlib.chdir(part):
                    make(part)
                part.rename(folder)
        return folder

    return give


@pytest.fixture(scope="session")
def tiny(made_once):
    """Folder of the tiny dataset; read only."""
    return made_once("data", lambda folder: write_tiny(folder / "tiny")) / "tiny"


@pytest.fixture
def own_tiny(tiny, tmp_path):
    """Folder of a tiny dataset that the test may damage, and its rows as of `tiny_rows`."""
    root = tmp_path / "own"
    shutil.copytree(tiny, root)
    return root, tiny_rows()


def supports(dataset, split):
    """{class name: number of images} of one split."""
    counts = np.bincount(dataset.splits[split].labels, minlength=len(dataset.labels))
    return dict(zip(dataset.labels, counts.tolist()))


def read_rows(path):
    """The rows of a CSV file as dicts."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def only_run(folder):
    """The one run in `folder`/runs."""
    (run,) = (folder / "runs").glob("[!.]*")
    return run


def call_script(name, *arguments):
    """Call a script's main in this process."""
    given = [str(argument) for argument in arguments]
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{name}.py", *given])
        module.main(given)


def next_command(printed):
    """The command after "Next:" in what a script printed, as words for `call_script`; read by its
    script's own flags first."""
    line = printed.split("Next: ")[1].splitlines()[0]
    _, script, *words = shlex.split(line)
    name = script.removesuffix(".py")
    importlib.import_module(name).parse_args(words)
    return name, *words


@pytest.fixture(scope="session")
def stored_features(tiny, made_once):
    """Folder of the features of an untrained narrow VGG16 for the tiny dataset; read only."""

    def make(_):
        with narrowed():
            call_script("extract_features", "--data", tiny, "--weights", "none")

    (folder,) = (made_once("extraction", make) / "features").glob("[!.]*")
    return folder


@pytest.fixture(autouse=True)
def freed():
    """Give the networks of a test back when it ends."""
    yield
    if "keras" in sys.modules:
        if not gc.get_freeze_count():
            gc.freeze()  # what the imports made stays; without it a collection takes half a second
        sys.modules["keras"].backend.clear_session(free_memory=True)
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def narrowed():
    """Within it VGG16 has an eighth of its filters, for what does not depend on their number, and
    TensorFlow does not trace its steps, which takes longer than they do."""
    import common

    layers = vars(common.layers).copy()

    def narrow_convolution(filters, *given, **settings):
        return common.layers.Conv2D(filters // 8, *given, **settings)

    layers["Conv2D"] = narrow_convolution
    tensorflow = sys.modules.get("tensorflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras.src.applications.vgg16.layers", SimpleNamespace(**layers))
        patch.setitem(common.HEADS, "fc", ("flatten", "dense 512", "dense 512"))
        if tensorflow:
            tensorflow.config.run_functions_eagerly(True)
        yield
        if tensorflow:
            tensorflow.config.run_functions_eagerly(False)


@pytest.fixture
def narrow():
    """The narrow VGG16."""
    with narrowed():
        yield


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty working folder, where runs/, features/ and data/cache/ are made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def extracted(workdir, stored_features):
    """A copy of the stored features, where scripts look for them."""
    return shutil.copytree(stored_features, workdir / "features" / stored_features.name)


@pytest.fixture(scope="session")
def runs(tiny, stored_features, made_once):
    """A working folder with a run of a narrow network and one of a forest; read only."""

    def make(folder):
        shutil.copytree(stored_features, folder / "features" / stored_features.name)
        with narrowed():
            call_script("random_forest", "--data", tiny, "--trees", "12")
            call_script("finetune", "--data", tiny, "--epochs", "2", "--head", "i")
        shutil.rmtree(folder / "data")

    return made_once("work", make)


@pytest.fixture
def in_runs(runs, workdir, narrow):
    """A copy of `runs` as the working folder; they name their dataset by path."""
    shutil.copytree(runs, workdir, dirs_exist_ok=True)
    return workdir


@pytest.fixture
def shared():
    """The folder with real metadata and photographs; skips the test where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no real data beside the repository")
    return SHARED


@pytest.fixture
def script():
    """Call a script's main in this process: script("finetune", "--head", "i") -> None."""
    return call_script
