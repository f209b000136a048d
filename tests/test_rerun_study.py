"""rerun_study.py: every row of the study from one command."""

import importlib
import re
from pathlib import Path

import pytest
from conftest import read_rows
from test_weights import write_official

import common
import rerun_study
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import write_json
from transfer.recipes import STRONG
from transfer.runs import describe_run
from transfer.study import FOREST_ROWS

RUNS = [*rerun_study.COMMANDS, *rerun_study.OURS]
STUDY = "runs/tiny-study"
ON_TEST = 9  # stands for the test split where a number of a stage or forest is asked for
# The run, and its stage or forest, that a row is read from; some rows.
SOURCES = {
    "stepwise, no augmentation": ("stepped", 2),
    "forest, block5_conv3, leaf 7": ("forests", 4),
    "forest on: second fine-tuned model": ("forest-on-stepped", 0),
    rerun_study.BEST_OF_STUDY: ("forest-on-stepped", ON_TEST),
    rerun_study.BEST_OF_OURS: ("strong", ON_TEST),
}


def made_up_accuracy(run, number=0):
    """The made-up accuracy of the run in this folder, or of a stage or forest of it."""
    seed = int(run.parent.name[-1])
    return (RUNS.index(run.name) + number / 100) / (10 + seed)


def write_run(script, args):
    """Write of a script's run what a rerun reads, whatever it trains: all stages, all forests."""
    run = Path(args.out)
    stages = []
    forests = []
    for number, row in enumerate(FOREST_ROWS):
        figure = {"val_accuracy": made_up_accuracy(run, number)}
        stages.append(figure)
        forests.append(row | figure)
    metrics = {
        "val_accuracy": made_up_accuracy(run),
        "stages": stages,
        "classifiers": forests if "forest" in run.name else [],
    }

    config = describe_run(args, load_dataset(args.data), features={"weights": args.weights})
    run.mkdir(parents=True)
    write_json(run / "config.json", {**config, "script": script})
    write_json(run / "metrics.json", metrics)


@pytest.fixture
def called(monkeypatch):
    """Scripts only write what they were called for. Grows: {that folder: the script's arguments}"""
    found = {}

    def call(script, given):
        args = importlib.import_module(script.removesuffix(".py")).parse_args(given)
        found[args.out] = args
        if script == "test_model.py":
            Path(args.out).mkdir()
            accuracy = made_up_accuracy(Path(args.run), ON_TEST)
            write_json(f"{args.out}/metrics.json", {"accuracy": accuracy})
        else:
            write_run(script, args)

    monkeypatch.setattr(rerun_study, "call", call)
    return found


@pytest.fixture
def rerun(tiny, workdir, script):
    """rerun(flags): call the script on the tiny dataset."""

    def call(*flags):
        script("rerun_study", "--data", tiny, "--weights", "none", *flags)

    return call


def folders(seed):
    """What a rerun with a seed makes, in its order: all runs, then the two tests."""
    names = [*RUNS, "forest-on-stepped/test", "strong/test"]
    return [f"{STUDY}/seed-{seed}/{name}" for name in names]


def test_every_row_is_rerun_once_and_read_from_its_run(rerun, called, capsys):
    rerun("--epochs", "1", "--balanced")
    assert list(called) == folders(0)
    head_i, _, stepped, _, forests, _, on_stepped, _, strong, *_ = called.values()
    assert head_i.epochs == strong.epochs == 1
    assert strong.learning_rate == STRONG["learning_rate"]
    assert forests.balanced
    assert forests.weights == "none"
    assert on_stepped.weights == stepped.out

    rows = {row["row"]: float(row["0"]) for row in read_rows(f"{STUDY}/rows.csv")}
    assert list(rows) == list(rerun_study.ROWS)
    for row, (name, number) in SOURCES.items():
        assert rows[row] == made_up_accuracy(Path(STUDY, "seed-0", name), number)
    out = capsys.readouterr().out
    assert all(row in out for row in rows)
    assert "81.25" in out


def test_what_is_finished_stays(rerun, called, capsys, tmp_path):
    rerun("--epochs", "1")
    head_i = f"{STUDY}/seed-0/head-i"
    Path(head_i).rename(tmp_path / "moved")
    called.clear()
    rerun("--epochs", "1", "--seeds", "0", "1")
    assert list(called) == [head_i, *folders(1)]
    assert f"finished before: {STUDY}/seed-0/strong/" in capsys.readouterr().out

    rerun("--epochs", "2")
    assert f"{STUDY}-2/seed-0/head-i" in called
    assert f"The folder {STUDY} has other settings or pictures (epochs)" in capsys.readouterr().out


def test_a_claim_holds_where_the_difference_is_significant(capsys):
    figures = {row: [0.5, 0.52, 0.48] for row in rerun_study.ROWS}
    figures["dense, augmentation"] = [0.6, 0.63, 0.59]
    figures[rerun_study.BEST_OF_STUDY] = [0.5, 0.5, 0.5]
    figures[rerun_study.BEST_OF_OURS] = [0.6, 0.62, 0.61]
    rerun_study.print_results(figures, "tiny")
    out = capsys.readouterr().out
    for line in (
        r"head iii is ahead of head i .* not significant",
        r"augmentation harms dense layers .* no",
        r"ours is ahead on the test split +- +\+11\.00 \+- 0\.58 +yes",
    ):
        assert re.search(f"{line}\n", out)


def test_a_command_that_fails_ends_it(rerun, monkeypatch, capfd):
    monkeypatch.setattr(rerun_study, "COMMANDS", {"head-iv": "finetune.py --head iv"})
    with pytest.raises(BadInput, match=r"finetune\.py ended with status 2"):
        rerun()
    assert "finetune.py: error: argument --head: invalid choice: 'iv'" in capfd.readouterr().err


def test_weights_that_do_not_fit_are_refused_before_anything_runs(rerun, workdir, called, narrow):
    write_official(workdir / "top.h5", common.build_model(32, 4, "fc"))
    with pytest.raises(BadInput, match="name imagenet, none or an .h5"):
        rerun("--weights", "own.keras")
    with pytest.raises(BadInput, match=r"dense layers of top\.h5 take images of 224 pixels"):
        rerun("--weights", "top.h5")
    assert not called
    assert not (workdir / "runs").exists()
