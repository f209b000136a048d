"""What an interrupted training resumes from: checkpoint.py (test_interrupts.py for whole runs)."""

from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import read_rows
from training import changed, losses, make, snapshot, stage, train

from transfer.checkpoint import Checkpoint
from transfer.weights import with_precision


def test_weights_are_written_as_often_as_time_allows(tmp_path, monkeypatch):
    """Each look at the clock takes a second, so each writing does: the next is due twenty later."""
    clock = SimpleNamespace(monotonic=partial(next, count()))
    monkeypatch.setattr("transfer.checkpoint.time", clock)
    optimizer = SimpleNamespace(variables=[])
    model = SimpleNamespace(layers=[], optimizer=optimizer, stop_training=False)
    checkpoint = Checkpoint.read(tmp_path)

    written = []
    for _ in range(60):
        checkpoint.end_epoch(model, {}, [])
        files = sorted(path.name for path in checkpoint.folder.iterdir())
        if files not in written:
            written.append(files)

    # what is not part of the state is removed
    assert written == [
        [f"best-{epoch}.npz", f"last-{epoch}.npz", "state.json"] for epoch in (1, 21, 41)
    ]
    assert len(read_rows(tmp_path / "history.csv")) == 60


@pytest.mark.parametrize(
    ("head", "blocks", "boundary", "precision", "value_size"),
    [
        pytest.param(
            *("iii", ("block4", "block5"), "block3_pool", "bfloat16", 2), marks=pytest.mark.slow
        ),
        ("multilayer", (), "features", "float32", 4),
    ],
)
@pytest.mark.usefixtures("narrow")
def test_a_stage_is_the_same_on_images_on_activations_and_resumed_on_the_other(
    tiny, tmp_path, monkeypatch, head, blocks, boundary, precision, value_size
):
    """There may be less room on the disk than when it began, or more."""
    monkeypatch.setattr("transfer.checkpoint.MAX_CHECKPOINT_SHARE", np.inf)

    def trained(folder, cache, epochs=2):
        model, dataset = make(tiny, tmp_path, head)
        model = with_precision(model, precision)
        planned = stage(blocks, epochs=epochs, batch_size=32)
        return model, losses(train(model, planned, dataset, tmp_path / folder, cache))

    model, expected = trained("whole", "none")
    weights = snapshot(model)
    for folder, first, second in (("1", tmp_path, "none"), ("2", "none", tmp_path)):
        trained(folder, first, epochs=1)
        resumed, found = trained(folder, second)
        np.testing.assert_allclose(found, expected, rtol=2e-4)
        assert changed(weights, resumed, tolerance=3e-4) == set()

    (path,) = tmp_path.glob(f"*-train-*{boundary}*.npy")
    assert np.load(path).itemsize == value_size
