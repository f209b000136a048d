"""Full disks, files that were meant to run code, and input that is odd or random."""

import importlib
import resource
import shlex
import shutil

import keras
import pytest
from conftest import only_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_scripts import assert_refused, run

from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.features import load_features
from transfer.weights import load_model

FUZZ = settings(
    deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADER = "Image file,Medium,Museum,Subset"
WORDS = ["Bronze", "Woodcut", "train", "val", "test", "train.0.0.jpeg", "", " ", "../x", '"', "\0"]
CELLS = st.sampled_from(WORDS) | st.text(max_size=12)
ROWS = st.lists(CELLS, min_size=1, max_size=6).map(",".join)
TABLES = st.lists(ROWS, max_size=8).map(lambda rows: "\n".join([HEADER, *rows]).encode())
NO_HELP = st.text(st.characters(codec="utf-8", exclude_characters="h"), max_size=5)
FLAGS = shlex.split("""
    --head --unfreeze --epochs --seed --trees --leaf --grid --layers --run --augment --final-augment
    --l2 --learning-rate --image-size --part --top
    i iii stepped 0 2 -1 nan 1e999 all none fc nowhere 999999999999999999999999999999
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("finetune.py --head i --epochs 1", 3_000_000),  # in the first epoch's weights
        ("random_forest.py --trees 2", 60_000),  # in the images
        ("random_forest.py --trees 2", 400_000),  # in the features
    ],
)
def test_a_full_disk_is_said_and_gone_on_from(tiny, tmp_path, command, limit):
    command = (*command.split(), "--data", tiny)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        done = run(*command, cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert_refused(done, "run the same command again to resume")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (only_run(tmp_path) / "metrics.json").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_a_network_with_code_in_it_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(BadInput, match=r"code\.keras"):
        load_model(tmp_path / "code.keras")


def accept_or_refuse(call, *arguments):
    """Only a value or BadInput may come of it."""
    try:
        call(*arguments)
    except BadInput as error:
        assert str(error).strip()


def load_damaged(path, content, load, *arguments):
    """The same, with another content in a file that gets its own back."""
    kept = path.read_bytes()
    try:
        path.write_bytes(content)
        accept_or_refuse(load, *arguments)
    finally:
        path.write_bytes(kept)


@pytest.mark.slow
@settings(FUZZ, max_examples=3000)
@given(
    content=st.binary(max_size=300) | TABLES,
    name=st.sampled_from(["MAMe_dataset.csv", "MAMe_labels.csv"]),
)
def test_any_metadata_is_read_or_refused(own_tiny, content, name):
    root, _ = own_tiny
    load_damaged(root / name, content, load_dataset, root)


@pytest.mark.slow
@settings(FUZZ, max_examples=3000)
@given(
    name=st.sampled_from(["val.npy", "features.json"]),
    start=st.integers(0, 130) | st.integers(0, 2000),  # an array's header has 128 bytes
    change=st.binary(max_size=8),
    taken=st.integers(0, 8) | st.just(10**6),  # bytes that it stands for, or all that follow
)
def test_any_features_are_read_or_refused(
    tiny, stored_features, tmp_path, name, start, change, taken
):
    folder = tmp_path / "features"
    if not folder.exists():
        shutil.copytree(stored_features, folder)
    path = folder / name
    whole = path.read_bytes()
    damaged = whole[:start] + change + whole[start + taken :]
    load_damaged(path, damaged, load_features, folder, load_dataset(tiny), "val", "all")


@pytest.mark.slow
@settings(FUZZ, max_examples=4000)
@given(
    name=st.sampled_from(["finetune", "random_forest", "train_pretrained", "test_model"]),
    flags=st.lists(st.sampled_from(FLAGS) | NO_HELP, max_size=6),
)
def test_any_flags_are_taken_or_refused_with_status_2(name, flags):
    try:
        accept_or_refuse(importlib.import_module(name).parse_args, flags)
    except SystemExit as end:
        assert end.code == 2
