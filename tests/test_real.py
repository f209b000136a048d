"""The scripts on MAMe's own metadata and real photographs; skipped where those are missing."""

import csv
import json

import numpy as np
import pytest
from conftest import supports

from transfer.data import load_dataset
from transfer.screen import BadInput

COUNTS = {"train": 4, "val": 2, "test": 4}


@pytest.fixture
def mame_layout(shared, tmp_path):
    """MAMe's layout: the first rows of each medium and split of the real metadata, names and quirks kept,
    with photographs (of other things) under MAMe's file names."""
    root = tmp_path / "mame"
    (root / "data_256").mkdir(parents=True)
    (root / "MAMe_labels.csv").write_bytes((shared / "mame" / "MAMe_labels.csv").read_bytes())
    photographs = sorted((shared / "real" / "trashnet").glob("*/*/*.jpg"))
    with open(shared / "mame" / "MAMe_dataset.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    taken, chosen = {}, []
    for row in rows:
        key = row["Medium"], row["Subset"]
        if taken.setdefault(key, 0) < COUNTS[row["Subset"]]:
            taken[key] += 1
            photograph = photographs[len(chosen) % len(photographs)]
            (root / "data_256" / row["Image file"]).symlink_to(photograph)
            chosen.append(row)
    with open(root / "MAMe_dataset.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(chosen)
    return root


@pytest.mark.real
def test_counts_names_and_supports_on_real_metadata(mame_layout, workdir, narrow, script, capsys):
    dataset = load_dataset(mame_layout)
    for split, count in COUNTS.items():
        assert supports(dataset, split) == dict.fromkeys(dataset.labels, count)
    assert (dataset.name, dataset.notice) == ("mame", None)
    flags = ("--data", mame_layout, "--image-size", "32", "--weights", "none", "--layers", "block5_conv3")
    script("random_forest", *flags, "--leaf", "2", "--trees", "12")
    script("test_model", "--data", mame_layout)
    out = capsys.readouterr().out
    assert "DEMO" not in out
    (metrics,) = (json.loads(path.read_text()) for path in (workdir / "runs").glob("*/test/metrics.json"))
    assert list(metrics["classes"]) == dataset.labels
    assert {row["support"] for row in metrics["classes"].values()} == {4}
    assert sum(row["support"] for row in metrics["museums"].values()) == metrics["images"] == 29 * 4
    assert np.sum(metrics["confusion_matrix"]) == 29 * 4


@pytest.mark.real
def test_imagenet_weights_that_cannot_be_had_are_said(mame_layout, workdir, script, monkeypatch):
    def get_file(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(BadInput, match="ImageNet weights could not be downloaded"):
        script("finetune", "--data", mame_layout, "--image-size", "32")
    assert not (workdir / "runs").exists()


@pytest.mark.real
@pytest.mark.parametrize("layout", [pytest.param("DIR/SPLIT/CLASS", marks=pytest.mark.slow), "DIR/CLASS"])
def test_photographs_in_folders_go_from_end_to_end(shared, workdir, narrow, script, capsys, layout):
    """TrashNet, six photographs of each material and split, to a confusion matrix and predictions."""
    root = workdir / "photographs"
    for of_class in sorted((shared / "real" / "trashnet").glob("*/*")):
        split, label = of_class.parts[-2:]
        place = root / split / label if "SPLIT" in layout else root / label
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(of_class.iterdir())[:6]:
            (place / path.name).symlink_to(path)
    flags = ("--data", root, "--image-size", "32", "--weights", "none", "--layers", "conv")
    script("random_forest", *flags, "--classifier", "linear")
    (run,) = (workdir / "runs").glob("[!.]*")
    script("test_model", "--run", run)
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert list(metrics["classes"]) == ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
    assert metrics["images"] == np.sum(metrics["confusion_matrix"]) == 6 * (6 if "SPLIT" in layout else 4)
    assert (root / "split.csv").exists() == ("SPLIT" not in layout)
    script("test_model", "--run", run, "--predict", root)
    lines = (run / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 6 * 18
    assert "MAMe" not in capsys.readouterr().out.replace("study, MAMe", "")
