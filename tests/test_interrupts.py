"""Interrupted at any moment, everything resumes where it stopped and ends as if it had not been."""

import re
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial

import numpy as np
import pytest
from conftest import ROOT, call_script, narrowed, only_run, read_rows
from filelock import FileLock
from training import make

import transfer.train
from transfer.console import BadInput
from transfer.files import read_json
from transfer.study import UNFREEZE

COMMAND = ("finetune", "--head", "i", "--epochs", "2", "--batch-size", "32")
STAGES = (("dense", ()), ("dense again", ()))  # as quick as stages can be
# Share of the time that may go into writing: each epoch is written; of each process the first one.
ALL = np.inf
FIRST = 1e-9
# What is interrupted before which call, that share, and the stage and epochs committed until then.
# Both stages have 2 epochs; each epoch and each stage ends with one commit.
MOMENTS = {
    "first epoch's weights are written": ("sync", 1, ALL, None),
    "its best weights too": ("sync", 2, ALL, None),
    "second epoch's weights are written": ("sync", 3, ALL, (1, 1)),
    "committed but not in history.csv": ("write_csv", 2, ALL, (1, 2)),
    "model.keras but not its stage": ("plot_curves", 1, ALL, (1, 2)),
    "between the stages": ("train_stage", 2, ALL, (2, 2)),
    "all but metrics.json": ("write_metrics", 1, ALL, (3, 4)),
    "second epoch not_written": ("save_model", 1, FIRST, (1, 1)),
    "second stage's epochs not_written": ("write_csv", 5, FIRST, (2, 2)),
}
SLOWER = {
    "its best weights too",
    "committed but not in history.csv",
    "second epoch not_written",
    "all but metrics.json",
}
MARKED = [pytest.param(moment, marks=pytest.mark.slow) for moment in sorted(SLOWER)]


class Unplugged(BaseException):
    """Stands in for a kill, within this process: nothing catches it."""


@pytest.fixture(autouse=True)
def every_epoch_and_no_curves(monkeypatch, narrow):
    """Every epoch is written, whatever time that takes; curves take longer than these epochs."""
    monkeypatch.setattr("transfer.checkpoint.MAX_CHECKPOINT_SHARE", np.inf)
    monkeypatch.setattr("transfer.train.plot_curves", lambda *_: None)


def interrupt(command, name, call):
    """Call a script that trains or fits; its `call`-th call of the function `name` raises
    Unplugged."""
    original = getattr(transfer.train, name)
    calls = []

    def unplug(*arguments):
        calls.append(name)
        if len(calls) == call:
            raise Unplugged
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Unplugged):
        for module in ("train", "checkpoint", "classifiers"):
            patch.setattr(f"transfer.{module}.{name}", unplug, raising=False)
        call_script(*command)


def state_of(run):
    """What the run in this folder resumes from; None where nothing is committed."""
    path = run / "resume" / "state.json"
    return read_json(path) if path.exists() else None


def weights_in(path):
    """The bytes of the weights in a .keras file, which is an archive with times in it."""
    return zipfile.ZipFile(path).read("model.weights.h5")


def assert_same_outcome(run, uninterrupted):
    """Nothing that must not depend on an interruption does: metrics, history, weights."""
    for name in ("metrics.json", "history.csv"):
        assert (run / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert weights_in(run / "model.keras") == weights_in(uninterrupted / "model.keras")
    assert not (run / "resume").exists()


# ---------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """The folder of a run of STAGES."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch, narrowed():
        patch.chdir(folder)
        patch.setitem(UNFREEZE, "none", STAGES)
        call_script(*COMMAND, "--data", tiny)
    return only_run(folder)


@pytest.mark.parametrize("moment", [*sorted(set(MOMENTS) - SLOWER), *MARKED])
def test_an_interrupted_run_ends_as_one_that_was_not(
    uninterrupted, tiny, workdir, monkeypatch, moment
):
    name, call, share, committed = MOMENTS[moment]
    monkeypatch.setitem(UNFREEZE, "none", STAGES)
    monkeypatch.setattr("transfer.checkpoint.MAX_CHECKPOINT_SHARE", share)
    interrupt((*COMMAND, "--data", tiny), name, call)

    run = only_run(workdir)
    assert not (run / "metrics.json").exists()
    state = state_of(run)
    assert (state and (state["stage"], len(state["history"]))) == committed

    call_script(*COMMAND, "--data", tiny)
    assert_same_outcome(only_run(workdir), uninterrupted)


@pytest.mark.parametrize(
    ("flags", "most"), [("--head i --augment", 2), ("--head iii --learning-rate 0.003", 30)]
)
def test_early_stopping_dropout_and_augmentation_go_on(tiny, workdir, monkeypatch, flags, most):
    monkeypatch.setattr("common.EARLY_STOPPING_PATIENCE", 2)
    settings = f"{flags} --epochs {most} --batch-size 32 --data {tiny} --out"
    command = ("finetune", *settings.split())
    call_script(*command, "whole")
    epochs = len(read_rows(workdir / "whole" / "history.csv"))
    assert min(most, 3) <= epochs < 30  # else the test says nothing

    interrupt((*command, "cut"), "write_csv", epochs - 1)  # one epoch before it ends
    assert state_of(workdir / "cut")["random"]["dropout1"][1] > 0  # counts its batches
    call_script(*command, "cut")
    assert_same_outcome(workdir / "cut", workdir / "whole")


def test_other_settings_and_weights_that_changed_since_are_never_resumed(tiny, workdir):
    def write_weights(seed):
        model, _ = make(tiny, workdir, "gap", seed)
        model.save("base.keras")

    write_weights(seed=0)
    command = (*COMMAND, "--data", tiny, "--weights", "base.keras", "--out", "cut")
    interrupt(command, "write_csv", 1)
    before = state_of(workdir / "cut")

    with pytest.raises(BadInput, match="cut .*seed"):
        call_script(*command, "--seed", "1")
    write_weights(seed=1)
    with pytest.raises(BadInput, match="cut .*weights"):
        call_script(*command)
    assert state_of(workdir / "cut") == before


def test_a_run_that_another_process_writes_is_left_alone(tiny, workdir):
    command = ("finetune", "--data", tiny, "--head", "i", "--epochs", "1")
    name = "tiny-finetune-i-none"
    (workdir / "runs").mkdir()
    with FileLock(workdir / "runs" / f".{name}.lock"):
        call_script(*command)
        with pytest.raises(BadInput, match="another process"):
            call_script(*command, "--out", f"runs/{name}")
    assert only_run(workdir).name == f"{name}-2"


@pytest.mark.slow
def test_control_c_ends_cleanly_and_says_how_to_go_on(tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "finetune.py", "--data", tiny, "--epochs", "500"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell has what it runs in the background ignore it
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:
        if line.startswith("Epoch 3/"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "run the same command again to resume" in errors
    assert len(state_of(only_run(tmp_path))["history"]) >= 1


# ------------------------------------------------------------------------------------- classifiers


def test_a_grid_goes_on_at_its_last_forest(tiny, workdir, stored_features, capsys):
    shutil.copytree(stored_features, workdir / "features" / stored_features.name)
    command = ("random_forest", "--data", tiny, "--grid", "--layers", "last", "--leaf", "2")
    call_script(*command, "--out", "whole")

    # what is fitted but not listed is fitted again; three forests are those without --discretize
    interrupt(command, "write_json", 2)
    interrupt(command, "write_json", 3)
    capsys.readouterr()
    call_script(*command)
    fitted = re.findall(r"(\d) of 6,", capsys.readouterr().out)
    assert fitted == ["4", "5", "6"]

    run = only_run(workdir)
    for name in ("metrics.json", "classifiers.csv"):
        assert (run / name).read_bytes() == (workdir / "whole" / name).read_bytes()
