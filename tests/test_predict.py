"""What a run says of any pictures: predict.py, test_model.py --predict."""

import json
import shutil

import pytest
from conftest import MEDIUMS, read_rows
from PIL import Image

from transfer import predict
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import read_json

NETWORK, FOREST = "runs/tiny-finetune-i-none", "runs/tiny-forest-none-all-trees12-leaf2"


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("run", [NETWORK, FOREST])
def test_predictions_are_those_of_the_test_split(tiny, in_runs, script, capsys, run):
    script("test_model", "--run", run, "--data", tiny)
    script("test_model", "--run", run, "--predict", tiny / "data_256", "--batch-size", "5")
    out = capsys.readouterr().out
    assert "and 46 more in predictions.csv" in out  # of 66 pictures 20 are shown
    expected = {row["file"]: row for row in read_rows(in_runs / run / "test" / "predictions.csv")}
    rows = read_rows(in_runs / run / "predicted" / "predictions.csv")
    rows = {row["file"].rsplit("/")[-1]: row for row in rows}
    lines = read_lines(in_runs / run / "predicted" / "predictions.jsonl")
    assert len(rows) == len(lines) == 66
    for name, row in expected.items():
        for rank in range(1, len(MEDIUMS) + 1):
            probability = float(row[f"probability_{rank}"])
            assert float(rows[name][f"probability_{rank}"]) == pytest.approx(probability, abs=1e-4)
    assert sum(found["probability"] for found in lines[0]["predictions"]) == pytest.approx(
        1, abs=1e-4
    )
    assert {line["dataset"] for line in lines} == {"tiny"}


def test_without_a_run_the_best_of_all_predicts(tiny, in_runs, script, capsys):
    script("test_model", "--predict", tiny / "data_256" / "test.0.0.jpeg")
    figures = {
        run: json.loads((in_runs / run / "metrics.json").read_text())["val_accuracy"]
        for run in (NETWORK, FOREST)
    }
    out = capsys.readouterr().out
    assert f"{max(figures, key=figures.get)}, trained on tiny" in out
    assert out.count("TINY DATASET of the tests.") == 2


def test_what_cannot_be_read_is_reported_and_the_rest_is_done(tiny, in_runs, script, capsys):
    (in_runs / "broken.jpg").write_bytes(b"GIF")
    (in_runs / "text.txt").write_text("no picture")
    Image.new("L", (300, 20)).save(in_runs / "grey.png")
    names = [
        "broken.jpg",
        "grey.png",
        "text.txt",
        "nowhere.png",
        tiny / "data_256" / "test.0.0.jpeg",
    ]
    script("test_model", "--run", NETWORK, "--out", "said", "--predict", *names)
    lines = read_lines(in_runs / "said" / "predictions.jsonl")
    assert {line["file"] for line in lines if "predictions" in line} == {"grey.png", str(names[-1])}
    errors = {line["file"]: line["error"] for line in lines if "error" in line}
    assert set(errors) == {"broken.jpg", "text.txt", "nowhere.png"}
    assert errors["nowhere.png"] == "there is no such file"
    assert "3 files could not be read" in capsys.readouterr().out
    with pytest.raises(BadInput, match="said holds predictions already"):
        script("test_model", "--run", NETWORK, "--out", "said", "--predict", "grey.png")


def test_nothing_to_predict_ends_with_a_sentence(in_runs, workdir, script):
    (in_runs / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture in empty"):
        script("test_model", "--run", NETWORK, "--predict", "empty")
    with pytest.raises(BadInput, match="None of the 1 pictures could be read"):
        script("test_model", "--run", NETWORK, "--predict", "nowhere.png")
    with pytest.raises(BadInput, match="no finished run in nowhere/"):
        script("test_model", "--runs", "nowhere", "--predict", "grey.png")


def test_a_forest_whose_network_has_changed_is_refused(tiny, in_runs, script):
    config = in_runs / FOREST / "config.json"
    content = read_json(config)
    content["features"]["seed"] = 1  # another random network
    config.write_text(json.dumps(content))
    with pytest.raises(BadInput, match="has changed since"):
        script("test_model", "--run", FOREST, "--predict", tiny / "data_256" / "test.0.0.jpeg")


def test_folders_are_searched_and_files_named_once(tiny, tmp_path):
    shutil.copy(tiny / "data_256" / "test.0.0.jpeg", tmp_path / "one.jpeg")
    (tmp_path / "deep").mkdir()
    shutil.copy(tiny / "data_256" / "test.0.0.jpeg", tmp_path / "deep" / "two.JPG")
    (tmp_path / "read.me").write_text("")
    found = predict.list_pictures([tmp_path, tmp_path / "one.jpeg", tmp_path / "read.me"])
    names = [path.relative_to(tmp_path).as_posix() for path in found]
    assert names == ["deep/two.JPG", "one.jpeg", "read.me"]
    assert load_dataset(tiny).labels == MEDIUMS


def test_an_interrupted_command_goes_on(tiny, in_runs, script, monkeypatch):
    command = ("test_model", "--run", NETWORK, "--predict", tiny / "data_256", "--batch-size", "20")
    script(*command, "--out", "whole", "--cache", "none")
    decode, asked = predict.decode_all, []

    def watched(paths, size):
        asked.append(len(paths))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return decode(paths, size)

    monkeypatch.setattr(predict, "decode_all", watched)
    with pytest.raises(KeyboardInterrupt):
        script(*command)
    script(*command)
    assert asked == [
        20,
        20,
        20,
        20,
        6,
        0,
    ]  # the second block was being written; nothing is unreadable
    for name in ("predictions.csv", "predictions.jsonl"):
        found = (in_runs / NETWORK / "predicted" / name).read_bytes()
        assert found == (in_runs / "whole" / name).read_bytes()


def test_the_confidence_is_the_lowest_that_is_right_often_enough():
    confidence = [0.9, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4]
    right = [True, True, False, True, True, True, False]
    assert predict.confidence_threshold(confidence, right, 1.0) == 0.8
    assert predict.confidence_threshold(confidence, right, 0.8) == 0.5
    assert predict.confidence_threshold(confidence, right, 0.75) == 0.5
    assert predict.confidence_threshold(confidence[::-1], right[::-1], 0.7) == 0.4
    assert predict.confidence_threshold([0.6, 0.6], [True, False], 0.9) == float(
        "inf"
    )  # equals go together


@pytest.mark.parametrize(("run", "pictures"), [(NETWORK, "*.*"), (FOREST, "*.1.?.jpg")])
def test_without_enough_confidence_the_answer_is_unsure(
    tiny, in_runs, script, capsys, run, pictures
):
    pictures = sorted((tiny / "data_256").glob(pictures))
    script("test_model", "--run", run, "--predict", *pictures, "--accept", "0.95")
    answers = read_json(in_runs / run / "validation.json")
    assert len(answers["confidence"]) == len(answers["right"]) == 12
    least = predict.confidence_threshold(*answers.values(), 0.95)
    rows = read_rows(in_runs / run / "predicted" / "predictions.csv")
    for row in rows:
        expected = row["predicted_1"] if float(row["probability_1"]) >= least - 1e-6 else "unsure"
        assert row["answer"] == expected or abs(float(row["probability_1"]) - least) < 1e-5
    assert [
        line["answer"] for line in read_lines(in_runs / run / "predicted" / "predictions.jsonl")
    ] == [row["answer"] for row in rows]
    assert "answer" in capsys.readouterr().out
    script("test_model", "--run", run, "--accept", "0.95")
    figures = json.loads((in_runs / run / "test" / "metrics.json").read_text())["accept"]
    tested = read_rows(in_runs / run / "test" / "predictions.csv")
    given = [row for row in tested if float(row["probability_1"]) >= least]
    assert figures["answered"] == pytest.approx(len(given) / len(tested))
    right = sum(row["true"] == row["predicted_1"] for row in given)
    assert figures["right"] == (pytest.approx(right / len(given)) if given else None)
    assert "Answers whose confidence is" in capsys.readouterr().out


def test_what_could_not_be_read_is_tried_again(tiny, in_runs, script, monkeypatch):
    """As after chmod, which changes neither the size nor the time of a file."""
    decode, names = predict.decode_all, sorted((tiny / "data_256").glob("test.0.*"))
    refused = lambda paths, size: (decode(paths, size)[0], {0: "Permission denied"})  # noqa: E731
    command = ("test_model", "--run", NETWORK, "--predict", *names)
    with monkeypatch.context() as patch:
        patch.setattr(predict, "decode_all", refused)
        script(*command)
    script(*command)
    for name, count in (("predicted", 1), ("predicted-2", 0)):
        lines = read_lines(in_runs / NETWORK / name / "predictions.jsonl")
        assert sum(line.get("error") == "Permission denied" for line in lines) == count
        assert len(lines) == len(names)
