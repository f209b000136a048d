"""Full disks, files that were meant to run code, two commands at once, and fuzzed input."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features
from transfer.weights import load_model

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CELLS = st.one_of(
    st.sampled_from(
        ["Bronze", "Woodcut", "train", "val", "test", "train.0.0.jpeg", "", " ", "../x", '"', "\0"]
    ),
    st.text(max_size=12),
)
FLAGS = [
    "--head",
    "--unfreeze",
    "--epochs",
    "--seed",
    "--trees",
    "--leaf",
    "--grid",
    "--layers",
    "--run",
]
FLAGS += [
    "--augment",
    "--final-augment",
    "--l2",
    "--learning-rate",
    "--image-size",
    "--part",
    "--top",
]
VALUES = ["i", "iii", "stepped", "0", "2", "-1", "nan", "1e999", "all", "none", "fc", "nowhere", ""]
VALUES.append("9" * 30)


def run(*command, cwd, **options):
    script, *flags = map(str, command)
    return subprocess.run(
        [sys.executable, str(ROOT / script), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        **options,
    )


def assert_refused(done, *words):
    """One sentence with each of `words`, status 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        (
            ("finetune.py", "--head", "i", "--epochs", "1"),
            3_000_000,
        ),  # in the first epoch's weights
        (("random_forest.py", "--trees", "2"), 60_000),  # in the images
        (("random_forest.py", "--trees", "2"), 400_000),  # in the features
    ],
)
def test_a_full_disk_is_said_and_gone_on_from(tiny, tmp_path, command, limit):
    def limit_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run(*command, "--data", tiny, cwd=tmp_path, preexec_fn=limit_files)
    assert_refused(done, "run the same command again to resume")
    assert not list(tmp_path.glob("runs/*/metrics.json"))
    done = run(*command, "--data", tiny, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/metrics.json"))) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_network_with_code_in_it_is_refused(tmp_path):
    inputs = keras.Input((2,))
    outputs = keras.layers.Lambda(lambda x: [Path("/tmp/ran").touch(), x][1])(inputs)
    keras.Model(inputs, outputs).save(tmp_path / "code.keras")
    with pytest.raises(BadInput, match=r"code\.keras"):
        load_model(tmp_path / "code.keras")


def accept_or_refuse(call):
    """Only a value or BadInput may come of it."""
    try:
        return call()
    except BadInput as error:
        assert str(error).strip()
        return None


@FUZZ
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.lists(st.lists(CELLS, min_size=1, max_size=6), max_size=8).map(
            lambda rows: "\n".join(
                ["Image file,Medium,Museum,Subset", *(",".join(row) for row in rows)]
            ).encode("utf-8", "surrogatepass")
        ),
    ),
    name=st.sampled_from(["MAMe_dataset.csv", "MAMe_labels.csv"]),
)
def test_any_metadata_is_read_or_refused(own_tiny, content, name):
    root, _ = own_tiny
    kept = (root / name).read_bytes()
    try:
        (root / name).write_bytes(content)
        accept_or_refuse(lambda: load_dataset(root).fingerprint)
    finally:
        (root / name).write_bytes(kept)


@FUZZ
@given(
    name=st.sampled_from(["val.npy", "val.csv", "features.json"]),
    damage=st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=8), st.booleans()),
)
def test_any_features_are_read_or_refused(tiny, stored_features, workdir, name, damage):
    folder = workdir / "fuzzed"
    if not folder.exists():
        shutil.copytree(stored_features, folder)
        small = np.load(folder / "val.npy")[:, :64]
        np.save(folder / "val.npy", small)  # small, so that the header is hit often
        notes = json.loads((folder / "features.json").read_text())
        (folder / "features.json").write_text(
            json.dumps(notes | {"layers": {"block1_conv1": [0, 64]}})
        )
    path = folder / name
    kept = {
        file: file.read_bytes()
        for file in folder.glob("*")
        if not file.name.startswith(("train", "test"))
    }
    try:
        place, change, cut = damage
        at = int(place * len(kept[path]))
        rest = b"" if cut else kept[path][at + len(change) :]
        path.write_bytes(kept[path][:at] + change + rest)
        accept_or_refuse(lambda: load_features(folder, load_dataset(tiny), "val", "all"))
    finally:
        for file, content in kept.items():
            file.write_bytes(content)


@settings(FUZZ, max_examples=300)
@given(
    name=st.sampled_from(
        ["finetune", "random_forest", "extract_features", "test_model", "train_pretrained"]
    ),
    flags=st.lists(st.sampled_from([*FLAGS, *VALUES]) | st.text(max_size=5), max_size=6),
)
def test_any_flags_are_taken_or_refused_with_status_2(name, flags):
    import importlib

    try:
        accept_or_refuse(lambda: importlib.import_module(name).parse_args(flags))
    except SystemExit as end:
        assert end.code == (0 if {"-h", "--help"} & {flag.split("=")[0] for flag in flags} else 2)
