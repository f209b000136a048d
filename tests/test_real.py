"""The scripts on real photographs; skipped where those are missing."""

import numpy as np
import pytest
from conftest import only_run

from transfer.files import read_json

MATERIALS = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]


@pytest.mark.real
@pytest.mark.parametrize("by_hand", [pytest.param(True, marks=pytest.mark.slow), False])
def test_photographs_in_folders_go_from_end_to_end(
    shared, workdir, narrow, script, capsys, by_hand
):
    """TrashNet, six photographs of each material and split, to a confusion matrix and predictions.
    by_hand: in DIR/SPLIT/CLASS/*, else in DIR/CLASS/*."""

    # as somebody sorts pictures
    root = workdir / "photographs"
    for folder in (shared / "real" / "trashnet").glob("*/*"):
        place = root / folder.name
        if by_hand:
            place = root / folder.parent.name / folder.name
        place.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[:6]:
            (place / path.name).symlink_to(path)

    # train a classifier and test it
    flags = ("--data", root, "--image-size", "32", "--weights", "none", "--layers", "conv")
    script("random_forest", *flags, "--classifier", "linear")
    run = only_run(workdir)
    script("test_model", "--run", run)

    # the test split is the one sorted so, or two ninths of all
    metrics = read_json(run / "test" / "metrics.json")
    per_class = 6 if by_hand else 4
    assert list(metrics["classes"]) == MATERIALS
    assert np.sum(metrics["confusion_matrix"], axis=1).tolist() == [per_class] * 6
    assert (root / "split.csv").exists() != by_hand

    # predict all of them
    script("test_model", "--run", run, "--predict", root)
    lines = (run / "predicted" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 6 * 18
    assert "MAMe" not in capsys.readouterr().out
