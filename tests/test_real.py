"""The scripts on real photographs; skipped where those are missing."""

import numpy as np
import pytest
from conftest import only_run

from transfer.files import read_json

MATERIALS = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]


@pytest.mark.real
def test_photographs_in_folders_go_from_end_to_end(shared, workdir, narrow, script, capsys):
    """TrashNet, 18 photographs of each material, to a confusion matrix and predictions."""

    # as somebody sorts pictures
    root = workdir / "photographs"
    for folder in (shared / "real" / "trashnet").glob("*/*"):
        place = root / folder.name
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[:6]:
            (place / path.name).symlink_to(path)

    # train a classifier and test it
    flags = ("--data", root, "--image-size", "32", "--weights", "none", "--layers", "conv")
    script("random_forest", *flags, "--classifier", "linear")
    run = only_run(workdir)
    script("test_model", "--run", run)

    # the test split is two ninths of all
    metrics = read_json(run / "test" / "metrics.json")
    assert list(metrics["classes"]) == MATERIALS
    assert np.sum(metrics["confusion_matrix"], axis=1).tolist() == [4] * 6

    # predict all of them
    script("test_model", "--run", run, "--predict", root)
    lines = (run / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 6 * 18
    assert "MAMe" not in capsys.readouterr().out
