"""Pictures of figures: plots.py."""

import matplotlib
import numpy as np
from PIL import Image

from transfer.plots import plot_confusion

LABELS = ["$0_$50", "a_$x^$", "plain"]


def drawn(path, labels=LABELS):
    """The pixels of a confusion matrix of these classes."""
    plot_confusion(np.eye(len(labels), dtype=int), labels, path, "title", None)
    return np.asarray(Image.open(path))


def test_dollars_are_no_formula_and_settings_of_a_user_do_not_count(tmp_path):
    expected = drawn(tmp_path / "a.png")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "red"}):
        np.testing.assert_array_equal(drawn(tmp_path / "b.png"), expected)


def test_a_thousand_classes_are_one_picture_of_a_usual_size(tmp_path):
    picture = drawn(tmp_path / "a.png", [f"class {number}" for number in range(1000)])
    assert max(picture.shape) < 2000


def test_a_picture_that_fails_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transfer.plots.save_figure", lambda *_: 1 / 0)
    plot_confusion(np.eye(3, dtype=int), LABELS, tmp_path / "a.png", "title", None)
    assert "could not be drawn (ZeroDivisionError(" in capsys.readouterr().out


def test_letters_that_no_font_has_are_said(tmp_path, capsys):
    drawn(tmp_path / "a.png", ["Möbel", "\U00013000"])
    assert f"No font here has all letters of {tmp_path}/a.png" in capsys.readouterr().out
    drawn(tmp_path / "b.png", ["Möbel", "Gemälde"])
    assert capsys.readouterr().out == ""
