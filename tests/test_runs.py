"""The folder of a run: its name, and which run may write there."""

import sys
from pathlib import Path

import pytest
from filelock import FileLock

from transfer.console import BadInput
from transfer.devices import Share
from transfer.files import read_json, write_json
from transfer.runs import FORMAT, finished_runs, read_run, start_run

CONFIG = {
    "format": FORMAT,
    "script": "finetune.py",
    "arguments": {"seed": 0, "image_size": 32, "part": (1, 1)},
    "dataset": {"name": "tiny", "fingerprint": "b", "folder": "pictures"},
    "versions": {"keras backend": "tensorflow", "keras": "3.0"},
    "weights_sha256": "c",
    "labels": ["bronze", "wood"],
}


def start(named=None, finish=False, **changes):
    """Begin or resume a run with this config.json; returns its folder."""
    with start_run(CONFIG | changes, "x", named) as run:
        if finish:
            (run / "metrics.json").write_text("{}")
    return str(run)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"arguments": {"seed": 1}}, "seed"),
        ({"script": "train_pretrained.py"}, "script"),
        ({"versions": {"keras backend": "jax"}}, "Keras backend"),
        ({"labels": ["bronze", "timber"]}, "labels"),
        ({"weights_sha256": "d"}, "weights_sha256"),
        ({"dataset": {"name": "tiny"}}, "pictures' names, classes or contents"),
    ],
)
def test_a_run_that_differs_is_not_resumed(workdir, capsys, change, reason):
    run = start()
    with pytest.raises(BadInput, match=rf"other [a-z ]* \({reason}\).*--out"):
        start(run, **change)
    assert start(**change) == "runs/tiny-x-2"
    assert "The folder runs/tiny-x " in capsys.readouterr().out


def test_a_run_is_resumed_by_the_same_command_until_it_is_finished(workdir, capsys):
    newer = {"keras backend": "tensorflow", "keras": "3.1"}
    moved = {"arguments": CONFIG["arguments"] | {"data": "b", "out": "runs/tiny-x"}}
    runs = [start(), start(**moved), start(versions=newer, finish=True)]
    assert runs == ["runs/tiny-x"] * 3
    assert capsys.readouterr().out.count("Resuming the interrupted run in runs/tiny-x\n") == 2
    with pytest.raises(BadInput, match=r"finished run; .*--run runs/tiny-x"):
        start(runs[0])


def test_a_second_process_has_a_folder_with_the_same_config(workdir, monkeypatch):
    run = start()
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # it is silenced
    with start_run(CONFIG, "x", share=Share(process=1)) as folder:
        assert read_json(folder / "config.json") == read_json(f"{run}/config.json")
    assert not folder.exists()


def test_a_run_that_another_process_writes_is_left_alone(workdir):
    run = start()
    with FileLock(workdir / "runs" / ".tiny-x.lock"):
        assert start() == f"{run}-2"
        with pytest.raises(BadInput, match="another process"):
            start(run)


@pytest.fixture
def moved(in_runs):
    """moved(changes of its config.json) -> the folder of a run whose dataset has moved."""
    run = Path("runs/tiny-forest-none-all-trees12-leaf2")

    def give(**changes):
        config = read_json(run / "config.json")
        config["dataset"]["folder"] = "gone"
        write_json(run / "config.json", config | changes)
        return run

    return give


def test_a_dataset_that_has_moved_is_named_with_data(tiny, moved, script):
    run = moved()
    flags = ("--run", run, "--accept", "0.95")
    with pytest.raises(BadInput, match="gone, which is not here; name .* with --data"):
        script("test_model", *flags)
    for what in (("--explain",), ("--predict", tiny / "data_256/test.0.0.jpeg")):
        (run / "unseen.json").unlink(missing_ok=True)
        script("test_model", *flags, "--data", tiny, *what)
        assert (run / "unseen.json").exists()
    script("test_model", "--compare", run, run, "--data", tiny)


def test_a_run_on_other_classes_says_which(tiny, moved, script):
    run = moved(labels=["Bronze", "Oil on canvas", "Wood", "Woven fabric"])
    told = r"was trained on other classes than those of .* \(gone: Wood; new: Woodcut\)"
    with pytest.raises(BadInput, match=told):
        script("test_model", "--run", run, "--data", tiny)


def test_a_folder_that_is_not_a_run_is_refused(workdir):
    (workdir / "own").mkdir()
    (workdir / "own" / "a.jpg").touch()
    with pytest.raises(BadInput, match="own exists and is not a run; empty it"):
        start("own")
    with pytest.raises(BadInput, match="own is not a finished run"):
        read_run("own")


def test_a_run_of_an_earlier_version_is_named_as_such(workdir, capsys):
    for version in (FORMAT, FORMAT - 1):
        start(f"runs/{version}", finish=True, format=version)
    assert [run.folder.name for run in finished_runs("runs")] == [str(FORMAT)]
    assert "made by an earlier version of these scripts" in capsys.readouterr().out
    for refuse in (read_run, start):
        with pytest.raises(BadInput, match="was made by an earlier version"):
            refuse(f"runs/{version}")
