"""The scripts on MAMe's own metadata and real photographs; skipped where those are missing."""

import json

import numpy as np
import pytest
from conftest import only_run

COUNTS = {"train": 4, "val": 2, "test": 4}


@pytest.mark.real
@pytest.mark.parametrize(
    "layout", [pytest.param("DIR/SPLIT/CLASS", marks=pytest.mark.slow), "DIR/CLASS"]
)
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
    run = only_run(workdir)
    script("test_model", "--run", run)
    metrics = json.loads((run / "test" / "metrics.json").read_text())
    assert list(metrics["classes"]) == ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
    assert (
        metrics["images"]
        == np.sum(metrics["confusion_matrix"])
        == 6 * (6 if "SPLIT" in layout else 4)
    )
    assert (root / "split.csv").exists() == ("SPLIT" not in layout)
    script("test_model", "--run", run, "--predict", root)
    lines = (run / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 6 * 18
    assert "MAMe" not in capsys.readouterr().out.replace("study, MAMe", "")
