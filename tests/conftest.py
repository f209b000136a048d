"""The tiny dataset that the tests run on: four mediums in MAMe's layout, 64 images of 48 pixels."""

import hashlib
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = ROOT.parent / "shared"
MEDIUMS = ["Bronze", "Oil on canvas", "Woodcut", "Woven fabric"]
COUNTS = {"train": 8, "val": 3, "test": 5}  # images a class; the first class has 2 more in test


def write_tiny(root, **defaults):
    """Write the tiny dataset into `root`; returns its rows (file, medium, museum, split)."""
    from PIL import Image

    from get_data import draw_image

    (root / "data_256").mkdir(parents=True)
    rows = []
    for index, medium in enumerate(MEDIUMS):
        for split, count in COUNTS.items():
            for number in range(count + 2 * (split == "test" and index == 0)):
                file = f"{split}.{index}.{number}.{'jpg' if number % 2 else 'jpeg'}"
                picture = Image.fromarray(draw_image(medium, (len(split), number)))
                picture.resize((48, 48)).save(root / "data_256" / file, "JPEG")
                rows.append((file, medium, f"Museum {number % 2}", split))
    # not in the order of the classes, as MAMe's own rows are not
    order = np.random.default_rng(0).permutation(len(rows))
    write_csv(root, [rows[index] for index in order])
    labels = "".join(f"{index},{medium}\n" for index, medium in enumerate(MEDIUMS))
    (root / "MAMe_labels.csv").write_text(labels)
    settings = {"name": "tiny", "image_size": 32, "weights": "none", "batch_size": 16}
    settings |= {"epochs": 2, "fine_tune_epochs": 1, "pretrain_epochs": 1, "learning_rate": 1e-3}
    settings |= {"notice": "TINY DATASET of the tests."}
    (root / "defaults.json").write_text(json.dumps(settings | defaults))
    return rows


def write_csv(root, rows, header="Image file,Medium,Museum,Museum-based instance ID,Subset,Width"):
    lines = [header]
    for file, medium, museum, split in rows:
        medium = "Woven fabric " if medium == "Woven fabric" else medium  # MAMe's own quirk
        lines.append(f"{file},{medium},{museum},{file},{split},48.0")
    (root / "MAMe_dataset.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_checksum(path):
    """Vouch for a damaged file, so that what comes after the checksum is tested."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n")


@pytest.fixture(scope="session")
def tiny_and_rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "tiny"
    return root, write_tiny(root)


@pytest.fixture(scope="session")
def tiny(tiny_and_rows):
    """Folder of the tiny dataset; read only."""
    return tiny_and_rows[0]


@pytest.fixture
def own_tiny(tiny_and_rows, tmp_path):
    """Folder of a tiny dataset that the test may damage, and its rows (file, medium, museum, split)."""
    root = tmp_path / "own"
    shutil.copytree(tiny_and_rows[0], root)
    return root, tiny_and_rows[1]


def call_script(name, *arguments):
    """Call a script's main in this process."""
    importlib.import_module(name).main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def stored_features(tiny, tmp_path_factory):
    """Folder of the features of an untrained VGG16 for the tiny dataset; read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("extraction"))
        call_script("extract_features", "--data", tiny, "--model", "none")
        (folder,) = Path("features").absolute().iterdir()
    return folder


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """An empty working folder, where runs/, features/ and data/cache/ are made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def runs(tiny, stored_features, tmp_path_factory):
    """A working folder with one network's and one forest's run; read only."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copytree(stored_features, folder / "features" / stored_features.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        call_script("random_forest", "--data", tiny, "--trees", "12")
        call_script("finetune", "--data", tiny, "--epochs", "2", "--head", "i")
        shutil.rmtree(folder / "data")
    return folder


@pytest.fixture
def in_runs(runs, workdir):
    shutil.copytree(runs, workdir, dirs_exist_ok=True)
    # runs name their dataset and features by path, as they were made
    return workdir


@pytest.fixture
def shared():
    """The folder with real metadata and photographs; skips the test where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("no real data beside the repository")
    return SHARED


@pytest.fixture
def script(monkeypatch):
    """Call a script's main in this process: script("finetune", "--head", "i") -> None."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        call_script(name, *arguments)

    return call
