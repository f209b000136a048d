"""Interrupted at any moment, everything resumes where it stopped and ends as if it had not been."""

import csv
import importlib
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, call_script, narrow_vgg16, only_run

import common
import random_forest
from transfer.console import BadInput
from transfer.files import write_json
from transfer.study import UNFREEZE
from transfer.weights import load_model, load_weights

RUN = ("--head", "iii", "--epochs", "2")
STAGES = (("dense", ()), ("dense again", ()))  # as quick as stages can be
MOMENTS = [  # each of both stages has 2 epochs; each epoch and each stage ends with one commit
    ("sync", 1, True),  # the first epoch's weights are written, but not committed
    ("sync", 2, True),  # those of the best epoch too
    ("sync", 3, True),  # those of the second epoch
    ("write_csv", 2, True),  # the last epoch is committed, but neither in history.csv nor its stage
    ("write_csv", 3, False),  # model.keras is there, its stage is not committed
    ("write_json", 3, False),  # between the stages
    ("write_json", 7, True),  # all but metrics.json is there
]


class Unplugged(BaseException):
    """Stands in for a kill, within this process: nothing catches it."""


@pytest.fixture(autouse=True)
def every_epoch_and_no_curves(monkeypatch, narrow):
    """Each epoch is written, whatever time that takes; drawing curves takes longer than these epochs do."""
    monkeypatch.setattr("transfer.train.MAX_CHECKPOINT_SHARE", np.inf)
    monkeypatch.setattr("transfer.train.plot_curves", lambda *_: None)


def outcome(run):
    """What must not depend on an interruption: metrics, history, and weights by layer."""
    model = load_model(run)
    arrays = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    return (run / "metrics.json").read_bytes(), (run / "history.csv").read_bytes(), arrays


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    for name, arrays in expected[2].items():
        for ours, theirs in zip(found[2][name], arrays):
            np.testing.assert_array_equal(ours, theirs)


def unplug_at(monkeypatch, name, call, before=False):
    """Let the `call`-th call of train.py's files.<name> raise Unplugged, before or after its work."""
    store, calls = importlib.import_module("transfer.train").store, [0]
    original = getattr(store, name)

    def wrapper(*arguments):
        calls[0] += 1
        if before and calls[0] == call:
            raise Unplugged
        original(*arguments)
        if calls[0] == call:
            raise Unplugged

    # train.py alone sees it; store itself calls its own functions
    monkeypatch.setattr("transfer.train.store", SimpleNamespace(**vars(store) | {name: wrapper}))


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        narrow_vgg16(patch)
        patch.chdir(folder)
        patch.setitem(UNFREEZE, "none", STAGES)
        call_script("finetune", "--data", tiny, *RUN)
    run = only_run(folder)
    return run


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment[0])
def test_an_interrupted_run_ends_as_one_that_was_not(
    uninterrupted, tiny, workdir, script, monkeypatch, moment
):
    shutil.copytree(uninterrupted.parents[1] / "data", workdir / "data")
    monkeypatch.setitem(UNFREEZE, "none", STAGES)
    with monkeypatch.context() as patch:
        unplug_at(patch, *moment)
        with pytest.raises(Unplugged):
            script("finetune", "--data", tiny, *RUN)
    assert not list(workdir.glob("runs/*/metrics.json"))
    script("finetune", "--data", tiny, *RUN)
    run = only_run(workdir)
    assert_same(outcome(run), outcome(uninterrupted))
    assert not (run / "resume").exists()


@pytest.mark.parametrize("moment", [("write_csv", 2, False), ("write_csv", 4, False)])
def test_epochs_that_were_not_written_are_trained_again(
    uninterrupted, tiny, workdir, script, monkeypatch, moment
):
    """The first one alone is written; the second of the first stage is lost, or the first of the second."""
    shutil.copytree(uninterrupted.parents[1] / "data", workdir / "data")
    monkeypatch.setitem(UNFREEZE, "none", STAGES)
    monkeypatch.setattr("transfer.train.MAX_CHECKPOINT_SHARE", 1e-9)
    with monkeypatch.context() as patch:
        unplug_at(patch, *moment)
        with pytest.raises(Unplugged):
            script("finetune", "--data", tiny, *RUN)
    state = json.loads((only_run(workdir) / "resume" / "state.json").read_text())
    assert (state["stage"], len(state["history"])) == ((1, 1) if moment[1] == 2 else (2, 2))
    script("finetune", "--data", tiny, *RUN)
    assert_same(outcome(only_run(workdir)), outcome(uninterrupted))


def test_early_stopping_counts_on_and_the_best_epoch_stays(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "iii", "--epochs", "30", "--learning-rate", "0.003")
    monkeypatch.setattr("common.EARLY_STOPPING_PATIENCE", 2)
    script("finetune", *flags, "--out", "whole")
    history = list(csv.DictReader((workdir / "whole" / "history.csv").open()))
    assert 3 <= len(history) < 30  # else the test says nothing
    with monkeypatch.context() as patch:
        unplug_at(patch, "write_json", len(history) - 1)  # one epoch before it stops
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    script("finetune", *flags, "--out", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))


def test_dropout_and_augmentation_go_on_in_their_sequence(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "i", "--augment", "--epochs", "2")
    script("finetune", *flags, "--out", "whole")
    with monkeypatch.context() as patch:
        unplug_at(patch, "write_json", 1)
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    state = json.loads((workdir / "cut" / "resume" / "state.json").read_text())
    assert state["random"]["dropout1"][1] > 0  # drawn once a batch
    script("finetune", *flags, "--out", "cut")
    assert_same(outcome(workdir / "cut"), outcome(workdir / "whole"))


def test_what_is_never_resumed(tiny, workdir, monkeypatch, script):
    flags = ("--data", tiny, "--head", "i", "--epochs", "2")
    with monkeypatch.context() as patch:
        unplug_at(patch, "write_json", 1)
        with pytest.raises(Unplugged):
            script("finetune", *flags, "--out", "cut")
    before = (workdir / "cut" / "resume" / "state.json").read_bytes()
    with pytest.raises(BadInput, match="another --seed"):
        script("finetune", *flags, "--seed", "1", "--out", "cut")
    with pytest.raises(BadInput, match="another --top"):
        script("train_pretrained", *flags[:2], "--out", "cut")
    assert (workdir / "cut" / "resume" / "state.json").read_bytes() == before
    script("finetune", *flags, "--out", "cut")
    with pytest.raises(BadInput, match=r"finished.*test_model\.py --run cut.*--out"):
        script("finetune", *flags, "--out", "cut")


def test_weights_that_changed_since_are_never_resumed_with(tiny, workdir, monkeypatch, script):
    def write_base(seed):
        model = common.build_model(32, 4, "gap")
        load_weights(model, "none", seed)
        model.save("base.keras")

    write_base(0)
    flags = (
        "--data",
        tiny,
        "--weights",
        "base.keras",
        "--head",
        "i",
        "--epochs",
        "2",
        "--out",
        "cut",
    )
    with monkeypatch.context() as patch:
        unplug_at(patch, "write_json", 1)
        with pytest.raises(Unplugged):
            script("finetune", *flags)
    write_base(1)
    with pytest.raises(BadInput, match="another weights_sha256"):
        script("finetune", *flags)


def test_a_run_that_another_process_writes_is_left_alone(tiny, workdir, script):
    from filelock import FileLock

    name = "tiny-finetune-i-none"
    (workdir / "runs").mkdir()
    with FileLock(workdir / "runs" / f".{name}.lock"):
        script("finetune", "--data", tiny, "--head", "i", "--epochs", "1")
        with pytest.raises(BadInput, match="another process"):
            script(
                "finetune", "--data", tiny, "--head", "i", "--epochs", "1", "--out", f"runs/{name}"
            )
    assert [path.name for path in (workdir / "runs").glob("[!.]*")] == [f"{name}-2"]


def test_extraction_resumes_at_its_last_batch(tiny, workdir, script, monkeypatch):
    command = ("extract_features", "--data", tiny, "--weights", "none")
    script(*command, "--out", "whole")
    predict, asked = common.keras.Model.predict_on_batch, []

    def watched(model, images):
        asked.append(len(images))
        if len(asked) == 2:
            raise Unplugged
        return predict(model, images)

    monkeypatch.setattr(common.keras.Model, "predict_on_batch", watched)
    with pytest.raises(Unplugged):
        script(*command)
    script(*command)
    assert asked == [16, 16, 16, 12, 16, 6]
    (path,) = workdir.glob("features/*/train.npy")
    assert path.read_bytes() == (workdir / "whole" / "train.npy").read_bytes()


def test_a_grid_goes_on_at_its_last_forest(tiny, workdir, stored_features, script, monkeypatch):
    shutil.copytree(stored_features, workdir / "features" / stored_features.name)
    fitted = []

    def record(path, rows):
        keys = ("layers", "discretize", "min_samples_leaf", "n_estimators")
        fitted.append(tuple(rows[-1][key] for key in keys))
        if len(fitted) in stops:
            raise Unplugged
        write_json(path, rows)

    monkeypatch.setattr("transfer.classifiers.write_json", record)
    monkeypatch.setitem(random_forest.DEFAULTS, "layers", ("all", ("last", "block5_conv3"), None))
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
    run = only_run(workdir)
    for name in ("metrics.json", "classifiers.csv"):
        assert (run / name).read_bytes() == (workdir / "whole" / name).read_bytes()
    assert zipfile.ZipFile(run / "pipeline.skops").testzip() is None


@pytest.mark.slow
def test_control_c_ends_cleanly_and_says_how_to_go_on(tiny, tmp_path):
    command = [
        sys.executable,
        "-u",
        str(ROOT / "finetune.py"),
        "--data",
        str(tiny),
        "--epochs",
        "500",
    ]

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
    assert "run the same command again to resume" in errors
    (state,) = tmp_path.glob("runs/*/resume/state.json")
    assert len(json.loads(state.read_text())["history"]) >= 1
