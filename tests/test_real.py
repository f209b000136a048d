"""The scripts on MAMe's own metadata and real photographs; skipped where those are missing."""

import csv
import json

import numpy as np
import pytest

from dataset import BadInput, load_dataset, supports

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
def test_counts_names_and_supports_on_real_metadata(mame_layout, workdir, script, capsys):
    dataset = load_dataset(mame_layout)
    for split, count in COUNTS.items():
        assert supports(dataset, split) == dict.fromkeys(dataset.labels, count)
    assert (dataset.name, dataset.notice) == ("mame", None)
    flags = ("--data", mame_layout, "--image-size", "32", "--model", "none", "--layers", "block5_conv3")
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
