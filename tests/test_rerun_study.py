"""rerun_study.py: every row of the study from one command."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import read_rows

import rerun_study
from transfer.console import BadInput
from transfer.study import CLAIMS, VAL_ACCURACY

NAME = "runs/study-tiny"


@pytest.fixture
def called(script, monkeypatch, narrow):
    """The scripts run in this process, without pictures of the forests; what was run is listed."""
    commands = []

    def call(name, flags):
        commands.append((name, flags))
        script(name.removesuffix(".py"), *flags)

    monkeypatch.setattr(rerun_study, "call", call)
    monkeypatch.setattr("transfer.classifiers.plot_confusion", lambda *_: None)
    monkeypatch.setitem(__import__("random_forest").DEFAULTS, "trees", ((100,), (50,), "forest"))
    return commands


def figures_in(folder):
    """{row: val_accuracy}, read from the runs themselves."""

    def stages(run):
        return [
            s["val_accuracy"]
            for s in json.loads((folder / run / "metrics.json").read_text())["stages"]
        ]

    expected = dict(
        zip(("dense, augmentation", "all unfrozen, augmentation"), stages("all-augment"))
    )
    stepped = stages("stepped")
    expected |= {"head iii": stepped[0], "stepwise, no augmentation": stepped[2]}
    expected |= {"stepwise, then augmentation": stepped[3], "head i": stages("head-i")[0]}
    for run in ("forest-on-all-augment", "forest-on-stepped"):
        metrics = json.loads((folder / run / "metrics.json").read_text())
        expected[rerun_study.FINE_TUNED[run]] = metrics["val_accuracy"]
        config = json.loads((folder / run / "config.json").read_text())
        assert config["arguments"]["weights"].endswith(run.removeprefix("forest-on-"))
    for run, row in rerun_study.TITLES.items():
        expected[row] = json.loads((folder / run / "metrics.json").read_text())["val_accuracy"]
    return expected


def test_every_row_is_rerun_once_and_read_from_its_run(tiny, workdir, script, called, capsys):
    command = ("rerun_study", "--data", tiny, "--epochs", "1")
    script(*command)
    names = ["finetune.py"] * 4 + ["random_forest.py"] * 4 + ["finetune.py"] + ["test_model.py"] * 2
    assert [name for name, _ in called] == names
    rows = {row["row"]: row for row in read_rows(workdir / NAME / "rows.csv")}
    assert set(rows) == {*VAL_ACCURACY, *rerun_study.TITLES.values()}
    folder = workdir / NAME / "seed-0"
    expected = figures_in(folder)
    tested = [
        Path(flags[flags.index("--run") + 1]).name
        for name, flags in called
        if name == "test_model.py"
    ]
    assert tested[0] in rerun_study.COMMANDS and tested[1] in rerun_study.OURS
    for row, figure in expected.items():
        assert float(rows[row]["0"]) == figure, row
    out = capsys.readouterr().out
    assert "81.25" in out and all(claim in out for claim, *_ in CLAIMS)

    # again, with a run and a seed more to do: what is finished stays
    shutil.rmtree(folder / "head-i")
    called.clear()
    script(*command, "--seeds", "0", "1")
    names = [name for name, _ in called]
    assert names.count("finetune.py") == 1 + 5
    assert names.count("random_forest.py") == 4
    out = capsys.readouterr().out
    assert "finished before" in out and " +- " in out
    with pytest.raises(BadInput, match="other settings"):
        script("rerun_study", "--data", tiny, "--epochs", "2")


def test_a_claim_holds_where_the_difference_is_clear(capsys, tiny):
    from transfer.data import load_dataset

    figures = {row: [0.5, 0.52, 0.48] for row in (*VAL_ACCURACY, *rerun_study.TITLES.values())}
    figures["head i"] = [0.4, 0.41, 0.39]
    figures["dense, augmentation"] = [0.6, 0.63, 0.59]
    tested = {"study": [0.5, 0.5, 0.5], "ours": [0.6, 0.62, 0.61]}
    rerun_study.print_rows(figures, tested, load_dataset(tiny))
    lines = {line.strip()[:28]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["head iii is ahead of head i "].endswith("+10.00 +- 0.58         yes")
    assert lines["head iii is ahead of head ii"].endswith("not clear")
    assert lines["augmentation harms dense lay"].endswith("no")
    assert lines["ours: ahead of the study's b"].endswith("+11.00 +- 0.58")


def test_a_command_that_fails_ends_it(tiny, workdir, monkeypatch):
    monkeypatch.setattr(
        rerun_study.subprocess, "run", lambda command: type("Done", (), {"returncode": 2})
    )
    with pytest.raises(BadInput, match=r"finetune\.py ended with status 2"):
        rerun_study.main(["--data", str(tiny)])
    with pytest.raises(BadInput, match="--seeds instead of --seed"):
        rerun_study.main(["--data", str(tiny), "--seed", "3"])


def test_weights_that_do_not_fit_are_refused_before_anything_runs(tiny, workdir, script, called):
    from test_network import write_official

    import common

    model = common.build_model(32, 4, "fc")
    write_official(workdir / "top.h5", model, with_top=True)
    model.save(workdir / "own.keras")
    with pytest.raises(BadInput, match="name imagenet, none or an .h5"):
        script("rerun_study", "--data", tiny, "--weights", "own.keras")
    with pytest.raises(BadInput, match=r"dense layers of top\.h5 take images of 224 pixels alone"):
        script("rerun_study", "--data", tiny, "--weights", "top.h5")
    assert called == [] and not (workdir / "runs").exists()
