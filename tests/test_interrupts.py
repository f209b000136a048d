"""Interrupted at any moment, everything resumes where it stopped and ends as if it had not been."""

import re
import signal
import subprocess
import sys
import zipfile
from functools import partial
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
from conftest import ROOT, call_script, narrowed, only_run, read_rows

import transfer.train
from transfer.files import read_json

# Two stages, as quick as stages can be.
FLAGS = "--head i --final-augment --epochs 2 --batch-size 32 --data"
COMMAND = ("finetune", *FLAGS.split())
# Share of the time that may go into writing: each epoch is written; of each process the first one.
ALL = np.inf
FIRST = 1e-9
NOTHING = (None, 0)
# What is interrupted before which call, that share, and the stage and epochs committed until then.
# Both stages have 2 epochs; each epoch and each stage ends with one commit.
MOMENTS = {
    "first epoch's weights are written": ("sync", 1, ALL, NOTHING),
    "second epoch's weights are written": ("sync", 3, ALL, (1, 1)),
    "model.keras but not its stage": ("plot_curves", 1, ALL, (1, 2)),
    "between the stages": ("train_stage", 2, ALL, (2, 2)),
    "second stage's epochs not_written": ("write_csv", 5, FIRST, (2, 2)),
}
SLOW = {
    "its best weights too": ("sync", 2, ALL, NOTHING),
    "committed but not in history.csv": ("write_csv", 2, ALL, (1, 2)),
    "second epoch not_written": ("save_model", 1, FIRST, (1, 1)),
    "all but metrics.json": ("write_metrics", 1, ALL, (3, 4)),
}


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
    before = [DEFAULT] * (call - 1)
    unplugged = Mock(wraps=getattr(transfer.train, name), side_effect=[*before, Unplugged])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Unplugged):
        for module in ("train", "checkpoint", "classifiers"):
            patch.setattr(f"transfer.{module}.{name}", unplugged, raising=False)
        call_script(*command)


def state_of(run):
    """What the run in this folder resumes from; empty where nothing is committed."""
    return read_json(run / "resume" / "state.json", {})


def outcome(run):
    """What must not depend on an interruption: metrics, history, weights."""
    # model.keras is an archive with times in it
    weights = zipfile.Path(run / "model.keras", "model.weights.h5")
    return [path.read_bytes() for path in (run / "metrics.json", run / "history.csv", weights)]


# ---------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    """The folder of a run of COMMAND."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch, narrowed():
        patch.chdir(folder)
        call_script(*COMMAND, tiny)
    return only_run(folder)


@pytest.mark.parametrize(
    "moment", [*MOMENTS, *(pytest.param(moment, marks=pytest.mark.slow) for moment in SLOW)]
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    uninterrupted, tiny, workdir, monkeypatch, moment
):
    name, call, share, committed = (MOMENTS | SLOW)[moment]
    monkeypatch.setattr("transfer.checkpoint.MAX_CHECKPOINT_SHARE", share)
    interrupt((*COMMAND, tiny), name, call)

    run = only_run(workdir)
    assert not (run / "metrics.json").exists()
    state = state_of(run)
    assert (state.get("stage"), len(state.get("history", ()))) == committed

    call_script(*COMMAND, tiny)
    assert outcome(only_run(workdir)) == outcome(uninterrupted)
    assert not (run / "resume").exists()


def test_early_stopping_dropout_and_augmentation_go_on(tiny, workdir, monkeypatch):
    monkeypatch.setattr("common.EARLY_STOPPING_PATIENCE", 2)
    flags = "--augment --learning-rate 0.03 --epochs 30 --batch-size 32 --data"
    command = ("finetune", *flags.split(), tiny, "--out")
    call_script(*command, "whole")
    epochs = len(read_rows(workdir / "whole" / "history.csv"))
    assert 3 <= epochs < 30  # else the test says nothing

    interrupt((*command, "cut"), "write_csv", epochs - 1)  # one epoch before it ends
    assert state_of(workdir / "cut")["random"]["dropout1"][1] > 0  # counts its batches
    call_script(*command, "cut")
    assert outcome(workdir / "cut") == outcome(workdir / "whole")


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
    assert state_of(only_run(tmp_path))["history"]


# ------------------------------------------------------------------------------------- classifiers


def test_a_grid_goes_on_at_its_last_forest(tiny, workdir, stored_features, capsys):
    features = ("--data", tiny, "--features", stored_features, "--layers", "last")
    command = ("random_forest", *features, "--grid", "--leaf", "2")
    call_script(*command, "--out", "whole")

    # what is fitted but not listed is fitted again; three forests are those without --discretize
    interrupt(command, "write_json", 2)
    interrupt(command, "write_json", 3)
    capsys.readouterr()
    call_script(*command)
    fitted = re.findall(r"(\d) of 6,", capsys.readouterr().out)
    assert fitted == ["4", "5", "6"]

    whole = (workdir / "whole" / "metrics.json").read_bytes()
    assert (only_run(workdir) / "metrics.json").read_bytes() == whole
