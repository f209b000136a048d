"""What a run says of any pictures: predict.py, test_model.py --predict."""

import json
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from conftest import read_rows
from PIL import Image

from transfer import predict
from transfer.console import BadInput
from transfer.files import read_json, write_json

NETWORK = "runs/tiny-finetune-i-none"
FOREST = "runs/tiny-forest-none-all-trees12-leaf2"


@pytest.fixture
def pictures(tiny):
    """Those of the tiny dataset, by name."""
    return sorted((tiny / "data_256").iterdir())


@pytest.fixture
def ask(script, in_runs):
    """ask(run, pictures, flags): call test_model.py --predict in a copy of `runs`."""

    def call(run, pictures, *flags):
        script("test_model", "--run", run, *flags, "--predict", *pictures)

    return call


def read_lines(folder):
    """Its predictions.jsonl as dicts."""
    text = Path(folder, "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def probabilities(rows):
    """Those of the four ranks in rows of a predictions.csv, (n, 4)."""
    ranks = [f"probability_{rank}" for rank in range(1, 5)]
    return np.array([[float(row[rank]) for rank in ranks] for row in rows])


@pytest.mark.parametrize("run", [NETWORK, FOREST])
def test_predictions_are_those_of_the_test_split(pictures, ask, script, capsys, run):
    script("test_model", "--run", run)
    capsys.readouterr()
    ask(run, [pictures[0].parent], "--batch-size", "5")
    assert capsys.readouterr().out.count("\n  test.") == predict.MAX_ROWS

    rows = read_rows(f"{run}/predicted/predictions.csv")
    assert [row["file"] for row in rows] == list(map(str, pictures))
    tested = read_rows(f"{run}/test/predictions.csv")
    tested.sort(key=itemgetter("file"))
    found = probabilities(rows[:22])  # of test.*, which come first
    assert found == pytest.approx(probabilities(tested), abs=1e-4)

    for row, line in zip(rows, read_lines(f"{run}/predicted")):
        first, second, *_ = line["predictions"]
        assert line["answer"] == first["class"] == row["predicted_1"]
        assert second["probability"] == float(row["probability_2"])


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(pictures, ask, workdir, capsys):
    (workdir / "broken.jpg").write_bytes(b"GIF")
    Image.new("L", (300, 20)).save("grey.png")
    ask(NETWORK, ["broken.jpg", "grey.png", "nowhere.png", pictures[0]], "--out", "said")

    errors = {line["file"]: line.get("error") for line in read_lines("said")}
    assert errors == {
        "broken.jpg": "it is not a picture, or of a kind that cannot be read",
        "nowhere.png": "there is no such file",
        "grey.png": None,
        str(pictures[0]): None,
    }
    assert "there is no such file" in capsys.readouterr().out

    with pytest.raises(BadInput, match="said holds predictions already"):
        ask(NETWORK, ["grey.png"], "--out", "said")


def test_a_forest_whose_network_has_changed_is_refused(pictures, ask, script):
    path = f"{FOREST}/config.json"
    config = read_json(path)
    config["features"]["seed"] = 1  # another random network
    write_json(path, config)
    with pytest.raises(BadInput, match="has changed since"):
        ask(FOREST, pictures)
    with pytest.raises(BadInput, match="has changed since"):
        script("test_model", "--run", FOREST)


def test_folders_are_searched_and_files_named_once(tmp_path):
    (tmp_path / "deep").mkdir()
    two = tmp_path / "deep" / "two.JPG"
    one = tmp_path / "one.jpeg"
    text = tmp_path / "read.me"
    for path in (two, one, text):
        path.touch()
    assert predict.list_pictures([tmp_path, one, text]) == [two, one, text]


def test_an_interrupted_command_goes_on(pictures, ask, workdir, monkeypatch):
    """And tries again what it could not read, as rights may have changed since."""
    command = (NETWORK, pictures, "--batch-size", "20")
    ask(*command, "--out", "whole", "--cache", "none")
    decode = predict.decode_all
    asked = []

    def watched(paths, size):
        asked.append(len(paths))
        images, bad = decode(paths, size)
        if len(asked) == 1:
            bad = {0: "Permission denied"}
        if len(asked) == 3:  # while the second block is being written
            raise KeyboardInterrupt
        return images, bad

    monkeypatch.setattr(predict, "decode_all", watched)
    with pytest.raises(KeyboardInterrupt):
        ask(*command)
    ask(*command)
    assert asked == [20, 20, 20, 20, 6, 1]

    # the first was tried again, alone in its batch, where sums are rounded otherwise
    resumed = read_rows(workdir / NETWORK / "predicted" / "predictions.csv")
    whole = read_rows(workdir / "whole" / "predictions.csv")
    assert resumed[1:] == whole[1:]
    assert probabilities(resumed[:1]) == pytest.approx(probabilities(whole[:1]), abs=2e-6)


@pytest.mark.parametrize("run", [NETWORK, FOREST])
def test_without_enough_confidence_the_answer_is_unsure(pictures, ask, run, capsys):
    ask(run, pictures, "--accept", "0.99")
    assert len(read_json(f"{run}/unseen.json")["right"]) == 12  # of the validation split
    rows = read_rows(f"{run}/predicted/predictions.csv")
    assert {row["answer"] for row in rows} == {"unsure"}

    # a confidence between those of the pictures at hand
    least = np.median(probabilities(rows)[:, 0]) + 1e-5
    write_json(f"{run}/unseen.json", {"confidence": [least] * 45, "right": [True] * 45})
    ask(run, pictures, "--accept", "0.95")
    assert "same kinds, in about the same shares" in capsys.readouterr().out

    rows = read_rows(f"{run}/predicted-2/predictions.csv")
    sure = probabilities(rows)[:, 0] >= least
    assert 0 < sum(sure) < len(rows)
    assert [row["answer"] != "unsure" for row in rows] == sure.tolist()
