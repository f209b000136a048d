"""Interrupted at any moment, everything goes on where it stopped and ends as if it had not been."""

import csv
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, call_script, narrow_vgg16

import common
import random_forest
from transfer import files, weights
from transfer.dataset import load_dataset
from transfer.devices import Share
from transfer.files import ArrayFile, check_file, make_array, make_array_together
from transfer.images import load_images
from transfer.screen import BadInput
from transfer.study import UNFREEZE

KILLED = Path(__file__).with_name("killed.py")
RUN = ("--head", "iii", "--epochs", "2")
STEPS = (("dense", ()), ("dense again", ()))  # as quick as steps can be


class Unplugged(BaseException):
    """Stands in for a kill, within this process: nothing catches it."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch, narrow):
    """Drawing them takes longer than these epochs do."""
    monkeypatch.setattr("transfer.fitting.plot_curves", lambda *_: None)


def outcome(run):
    """What must not depend on an interruption: metrics, history, and weights by layer."""
    model = weights.load_model(run)
    arrays = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    return (run / "metrics.json").read_bytes(), (run / "history.csv").read_bytes(), arrays


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    for name, arrays in expected[2].items():
        for ours, theirs in zip(found[2][name], arrays):
            np.testing.assert_array_equal(ours, theirs)


def unplug_at(monkeypatch, name, call, before):
    """Let the `call`-th call of `name`, "<module>.<function>" as that module calls it, raise Unplugged,
    before or after it does its work."""
    module, function = name.split(".")
    module = importlib.import_module(f"transfer.{module}")
    original, calls = getattr(module, function), [0]

    def wrapper(*arguments, **settings):
        calls[0] += 1
        if before and calls[0] == call:
            raise Unplugged
        result = original(*arguments, **settings)
        if calls[0] == call:
            raise Unplugged
        return result

    monkeypatch.setattr(module, function, wrapper)


# Training --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        narrow_vgg16(patch)
        patch.chdir(folder)
        patch.setitem(UNFREEZE, "none", STEPS)
        call_script("finetune", "--data", tiny, *RUN)
    (run,) = (folder / "runs").iterdir()
    return run


MOMENTS = [  # each of both steps has 2 epochs; each epoch and each step ends with one commit
    ("resume.link", 1, False),  # the first epoch's weights are written, but not committed
    ("resume.save_weights", 1, False),  # those of an epoch that is not the best, or of a whole step
    ("fitting.write_csv", 2, True),  # the last epoch is committed, but neither in history.csv nor its step
    ("training.replace_with_checksum", 1, False),  # model.keras is there, its step is not committed
    ("resume.write_json", 3, False),  # between the steps
    ("training.write_json", 1, True),  # all but metrics.json is there
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[0])
def test_an_interrupted_run_ends_as_one_that_was_not(
    uninterrupted, tiny, workdir, script, monkeypatch, moment
):
    shutil.copytree(uninterrupted.parents[1] / "data", workdir / "data")
    monkeypatch.setitem(UNFREEZE, "none", STEPS)
    with monkeypatch.context() as patch:
        unplug_at(patch, *moment)
        with pytest.raises(Unplugged):
            script("finetune", "--data", tiny, *RUN)
    assert not list(workdir.glob("runs/*/metrics.json"))
    script("finetune", "--data", tiny, *RUN)
    (run,) = (workdir / "runs").iterdir()
    assert_same(outcome(run), outcome(uninterrupted))
    assert not (run / "resume").exists()


def test_a_disk_without_links_gets_copies(uninterrupted, tiny, workdir, script, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setitem(UNFREEZE, "none", STEPS)
    monkeypatch.setattr("os.link", refuse)
    script("finetune", "--data", tiny, *RUN)
    (run,) = (workdir / "runs").iterdir()
    assert_same(outcome(run), outcome(uninterrupted))


def test_early_stopping_counts_on_and_the_best_epoch_stays(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "iii", "--epochs", "30", "--learning-rate", "0.003")
    monkeypatch.setattr("common.EARLY_STOPPING_PATIENCE", 2)
    script("finetune", *flags, "--out", "whole")
    history = list(csv.DictReader((workdir / "whole" / "history.csv").open()))
    assert 3 <= len(history) < 30  # else the test says nothing
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", len(history) - 1, False)  # one epoch before it stops
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    script("finetune", "--resume", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))


def test_dropout_and_augmentation_go_on_in_their_sequence(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "i", "--augment", "--epochs", "2")
    script("finetune", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", 1, False)
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    state = json.loads((workdir / "cut" / "resume" / "state.json").read_text())
    assert state["random"]["dropout1"][1] > 0  # drawn once a batch
    script("finetune", *flags, "--out", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))


def test_what_resume_refuses(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "i", "--epochs", "2")
    unplug_at(monkeypatch, "resume.write_json", 1, False)
    with pytest.raises(Unplugged):
        script("finetune", *flags, "--out", "cut")
    before = (workdir / "cut" / "resume" / "state.json").read_bytes()
    with pytest.raises(BadInput, match=r"takes every setting.*\(head\)"):
        script("finetune", "--resume", "cut", "--head", "ii")
    with pytest.raises(BadInput, match=r"finetune\.py --resume cut"):
        script("train_pretrained", "--resume", "cut")
    with pytest.raises(BadInput, match="another seed"):
        script("finetune", *flags, "--seed", "1", "--out", "cut")
    with pytest.raises(BadInput, match="nowhere"):
        script("finetune", "--resume", "nowhere")
    assert (workdir / "cut" / "resume" / "state.json").read_bytes() == before
    script("finetune", "--resume", "cut")
    with pytest.raises(BadInput, match=r"finished.*test_model\.py --run cut"):
        script("finetune", "--resume", "cut")


def test_a_run_that_an_earlier_version_began_is_refused_or_passed_over(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "i", "--epochs", "1")
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", 1, False)
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "runs/tiny-finetune-i-none")
    config = workdir / "runs" / "tiny-finetune-i-none" / "config.json"
    content = json.loads(config.read_text())
    del content["format"]
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="another version of these scripts began; delete it"):
        script("finetune", "--resume", "runs/tiny-finetune-i-none")
    script("finetune", *flags)
    assert (workdir / "runs" / "tiny-finetune-i-none-2" / "metrics.json").exists()


def test_weights_that_changed_since_are_not_gone_on_with(tiny, workdir, monkeypatch, script):
    def write_base(seed):
        model = common.build_model(32, 4, "gap")
        weights.load_weights(model, "none", seed)
        model.save("base.keras")

    write_base(0)
    flags = ("--data", tiny, "--weights", "base.keras", "--head", "i", "--epochs", "2", "--out", "cut")
    with monkeypatch.context() as patch:
        unplug_at(patch, "resume.write_json", 1, False)
        with pytest.raises(Unplugged):
            script("finetune", *flags)
    write_base(1)
    with pytest.raises(BadInput, match="another weights_sha256"):
        script("finetune", *flags)


def test_a_run_that_another_process_writes_is_left_alone(tiny, workdir, script):
    from filelock import FileLock

    name = "tiny-finetune-i-none"
    (workdir / "runs" / name).mkdir(parents=True)
    with FileLock(workdir / "runs" / name / ".lock"):
        script("finetune", "--data", tiny, "--head", "i", "--epochs", "1")
        with pytest.raises(BadInput, match="another process"):
            script("finetune", "--data", tiny, "--head", "i", "--epochs", "1", "--out", f"runs/{name}")
    assert sorted(path.name for path in (workdir / "runs").iterdir()) == [name, f"{name}-2"]


@pytest.mark.slow
def test_killed_for_real(tiny, tmp_path):
    """SIGKILL before changes to files drawn at random; benchmarks/interrupts.py does it many times."""
    command = [
        str(ROOT / "finetune.py"),
        "--data",
        str(tiny),
        "--head",
        "i",
        "--final-augment",
        "--epochs",
        "1",
    ]

    def run(folder, stop):
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, str(KILLED), str(stop), *command], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done

    changes = int(run(tmp_path / "whole", 0).stdout.split("changes: ")[1])
    assert changes > 20
    draw = random.Random(int(os.environ.get("KILL_SEED", "3")))
    for stop in sorted(draw.sample(range(2, changes // 2), 2)):
        assert run(tmp_path / "cut", stop).returncode == -signal.SIGKILL
        for path in (tmp_path / "cut").rglob("*.sha256"):
            if path.with_suffix("").exists():
                check_file(path.with_suffix(""))
    assert run(tmp_path / "cut", 0).returncode == 0
    (cut,), (whole,) = ((tmp_path / name / "runs").iterdir() for name in ("cut", "whole"))
    assert_same(outcome(cut), outcome(whole))


# Arrays, features, forests ---------------------------------------------------------------


def test_an_array_goes_on_at_its_last_whole_block(tmp_path):
    whole = np.random.default_rng(0).normal(size=(23, 4, 3)).astype("float32")
    asked = []

    def produce(start, stop):
        asked.append(start)
        if len(asked) == 4:
            raise Unplugged
        return whole[start:stop]

    path = tmp_path / "a.npy"
    array = ArrayFile(path, whole.shape, "float32", "test")
    with pytest.raises(Unplugged):
        make_array(array, produce, 5)
    assert not path.exists()
    with open(tmp_path / "a.npy.part", "ab") as file:
        file.write(b"half a block")
    np.testing.assert_array_equal(make_array(array, produce, 5), whole)
    assert asked == [0, 5, 10, 15, 15, 20]
    np.testing.assert_array_equal(make_array(array, produce, 5), whole)  # nothing is asked
    assert len(asked) == 6
    content = path.read_bytes()
    for damaged in (content[:-5], content[:200] + b"\0" + content[201:], b""):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"a\.npy.*another sha256"):
            make_array(array, produce, 5)


def test_a_part_of_another_shape_is_begun_anew(tmp_path):
    (tmp_path / "a.npy.part").write_bytes(b"\x93NUMPY something else, and longer than the header" * 50)
    whole = np.arange(12.0).reshape(6, 2)
    file = ArrayFile(tmp_path / "a.npy", (6, 2), "float64", "test")
    found = make_array(file, lambda a, b: whole[a:b], 4)
    np.testing.assert_array_equal(found, whole)


def test_two_at_once_make_an_array_once(tmp_path):
    asked = []

    def produce(start, stop):
        asked.append(start)
        return np.full((stop - start, 1000), start, "float32")

    def make(found):
        found.append(make_array(ArrayFile(tmp_path / "a.npy", (50, 1000), "float32", "test"), produce, 1))

    found = []
    threads = [threading.Thread(target=make, args=(found,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == list(range(50))
    np.testing.assert_array_equal(*found)


def test_more_workers_than_blocks(tmp_path):
    array = ArrayFile(tmp_path / "a.npy", (3, 2), "float32", "test")
    rows = np.arange(6, dtype="float32").reshape(3, 2)
    made = make_array_together(array, lambda a, b: rows[a:b], 2, Share(workers=4, worker=1))
    np.testing.assert_array_equal(made, rows)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_make_an_array_together_and_one_is_lost(tmp_path, workers):
    whole = np.random.default_rng(0).normal(size=(23, 3)).astype("float32")
    alone = ArrayFile(tmp_path / "alone.npy", whole.shape, "float32", "test")
    make_array(alone, lambda start, stop: whole[start:stop], 2)
    array = alone._replace(path=tmp_path / "together" / "a.npy")
    (tmp_path / "together").mkdir()
    asked = []

    def work(worker, found, lost=False):
        def produce(start, stop):
            asked.append(start)
            if lost and len([row for row in asked if row >= start - 4]) == 2:
                raise Unplugged
            return whole[start:stop]

        try:
            share = Share(workers=workers, worker=worker)
            found.append(make_array_together(array, produce, 2, share))
        except Unplugged:
            lost_ones.append(worker)

    found, lost_ones = [], []
    work(workers - 1, found, lost=True)  # it has made one block of its piece
    assert lost_ones == [workers - 1] and not array.path.exists()
    threads = [threading.Thread(target=work, args=(worker, found)) for worker in range(workers - 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == workers - 1
    assert sorted(asked) == sorted([*range(0, 23, 2), asked[1]])  # the lost batch alone came twice
    assert array.path.read_bytes() == alone.path.read_bytes()
    kept = {path.name for path in array.path.parent.iterdir()}
    assert kept == {"a.npy", "a.npy.sha256", ".a.npy.lock"}
    work(workers - 1, found)  # comes back when all is done
    np.testing.assert_array_equal(found[-1], whole)


def test_extraction_goes_on_at_its_last_batch(tiny, workdir, script, monkeypatch):
    command = ("extract_features", "--data", tiny, "--model", "none", "--splits", "train")
    script(*command, "--out", "whole")
    original, asked = files.fill_array, []

    def fill(file, produce, block):
        def watched(start, stop):
            asked.append(start)
            if len(asked) == 2:
                raise Unplugged
            return produce(start, stop)

        return original(file, watched if "features" in file.description else produce, block)

    monkeypatch.setattr("transfer.files.fill_array", fill)
    with pytest.raises(Unplugged):
        script(*command)
    script(*command)
    assert asked == [0, 16, 16]
    (path,) = workdir.glob("features/*/train.npy")
    assert path.read_bytes() == (workdir / "whole" / "train.npy").read_bytes()


def test_a_grid_goes_on_at_its_last_forest(tiny, workdir, stored_features, script, monkeypatch):
    shutil.copytree(stored_features, workdir / "features" / stored_features.name)
    fitted = []

    def save_confusion(run, name, dataset, row, *_):
        fitted.append((row["layers"], row["discretize"], row["min_samples_leaf"], row["n_estimators"]))
        if len(fitted) in stops:
            raise Unplugged

    monkeypatch.setattr("random_forest.save_confusion", save_confusion)
    monkeypatch.setitem(random_forest.DEFAULTS, "layers", ("all", ("last", "block5_conv3")))
    stops = ()
    script("random_forest", "--data", tiny, "--grid", "--out", "whole")
    settings, stops = fitted.copy(), (2, 11, 28)
    fitted.clear()
    for _ in stops:
        with pytest.raises(Unplugged):
            script("random_forest", "--data", tiny, "--grid")
    script("random_forest", "--data", tiny, "--grid")
    assert len(fitted) == len(settings) + len(stops)  # each interrupted forest was fitted twice
    assert list(dict.fromkeys(fitted)) == settings
    (run,) = (workdir / "runs").iterdir()
    for name in ("metrics.json", "forests.csv"):
        assert (run / name).read_bytes() == (workdir / "whole" / name).read_bytes()
    check_file(run / "pipeline.skops")


def test_unreadable_images_are_remembered_over_an_interruption(own_tiny, tmp_path, monkeypatch):
    root, _ = own_tiny
    (root / "data_256" / "train.1.1.jpg").write_bytes(b"")
    monkeypatch.setattr("transfer.images.DECODE_BLOCK", 4)
    dataset = load_dataset(root)
    expected = load_images(dataset, ("train",), 32, tmp_path / "whole", skip_unreadable=True)
    row = dataset.splits["train"].files.tolist().index("train.1.1.jpg")
    decode, calls = files.fill_array, []

    def fill(file, produce, block):
        def watched(start, stop):
            rows = produce(start, stop)
            if start <= row < stop and not calls:
                calls.append(start)
                raise Unplugged
            return rows

        return decode(file, watched, block)

    monkeypatch.setattr("transfer.files.fill_array", fill)
    with pytest.raises(Unplugged):
        load_images(dataset, ("train",), 32, tmp_path / "cut", skip_unreadable=True)
    found = load_images(dataset, ("train",), 32, tmp_path / "cut", skip_unreadable=True)
    assert found.skipped == expected.skipped == ["train.1.1.jpg"]
    everything = np.arange(len(expected.splits["train"].files))
    ours, theirs = (loaded.splits["train"].images[everything] for loaded in (found, expected))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_control_c_ends_cleanly_and_says_how_to_go_on(tiny, tmp_path):
    command = [sys.executable, "-u", str(ROOT / "finetune.py"), "--data", str(tiny), "--epochs", "500"]

    def heed_control_c():  # a shell has what it runs in the background ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_control_c,
    )
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "the same command goes on" in errors
    (state,) = tmp_path.glob("runs/*/resume/state.json")
    assert len(json.loads(state.read_text())["history"]) >= 2
