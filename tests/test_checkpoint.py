"""What an interrupted training resumes from: checkpoint.py (test_interrupts.py for whole runs)."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import read_rows
from training import changed, losses, make, snapshot, stage, train

from transfer.checkpoint import Checkpoint
from transfer.files import read_json
from transfer.weights import with_precision


def test_weights_are_written_as_often_as_time_allows(tmp_path, monkeypatch):
    """An epoch a second; each writing takes two, so the next is due forty seconds later."""
    clock = [100.0]

    def slowly(path):
        clock[0] += 1

    monkeypatch.setattr("transfer.checkpoint.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("transfer.checkpoint.sync", slowly)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.stop_training = False
    checkpoint = Checkpoint.read(tmp_path)

    written = set()
    for _ in range(90):
        clock[0] += 1
        checkpoint.end_epoch(model, {}, model.get_weights())

        # what is not part of the state is removed
        state = read_json(tmp_path / "resume" / "state.json")
        files = {path.name for path in (tmp_path / "resume").iterdir()}
        assert files == {"state.json", state["last"], state["best"]}
        written.add(len(state["history"]))
    assert written == {1, 41, 81}
    assert len(read_rows(tmp_path / "history.csv")) == 90


@pytest.mark.parametrize(
    ("head", "blocks", "boundary", "precision", "value_size"),
    [
        pytest.param("iii", (), "block5_pool", "bfloat16", 2, marks=pytest.mark.slow),
        pytest.param(
            *("iii", ("block4", "block5"), "block3_pool", "float32", 4), marks=pytest.mark.slow
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
    assert round(path.stat().st_size / np.load(path, mmap_mode="r").size) == value_size
