"""The report on runs and on the test split, and the comparison of two: report.py, test_model.py."""

import ast
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import MEDIUMS, ROOT, next_command, read_rows

from transfer import report
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import read_json, write_json
from transfer.runs import read_run
from transfer.stats import mcnemar

FOREST = "runs/tiny-forest-none-all-trees12-leaf2"
NETWORK = "runs/tiny-finetune-i-none"
NOTICE = "TINY DATASET of the tests."


def accuracy_of(run):
    """The share of the test split that was told right."""
    rows = read_rows(f"{run}/test/predictions.csv")
    return np.mean([row["true"] == row["predicted_1"] for row in rows])


@pytest.mark.parametrize("run", [FOREST, NETWORK])
def test_figures_are_those_of_the_predictions(in_runs, script, capsys, run):
    script("test_model", "--run", run)
    assert capsys.readouterr().out.count(NOTICE) == 2
    figures = read_json(f"{run}/test/metrics.json")
    assert figures["dataset"]["notice"] == NOTICE
    assert figures["accuracy"] == accuracy_of(run)

    for row in read_rows(f"{run}/test/predictions.csv"):  # the class is in the file's name
        assert row["file"].startswith(f"test.{MEDIUMS.index(row['true'])}.")


def test_without_a_run_the_best_validation_accuracy_is_taken(tiny, in_runs, script, capsys):
    path = f"{FOREST}/metrics.json"
    write_json(path, {**read_json(path), "val_accuracy": 0.9})
    script("test_model", "--data", tiny)
    assert list(in_runs.glob("runs/*/test")) == [in_runs / FOREST / "test"]
    out = capsys.readouterr().out
    assert NETWORK in out
    assert "81.25%" in out  # a row of the study that nobody reran
    head_i = read_json(f"{NETWORK}/metrics.json")["val_accuracy"]
    assert f"head i 75.36% {head_i:.2%}" in " ".join(out.split())

    script("test_model", "--predict", tiny / "data_256" / "test.0.0.jpeg")
    out = capsys.readouterr().out
    assert f"{FOREST}, trained on tiny (val accuracy 90.00%), classifies 1 pictures" in out
    assert out.count(NOTICE) == 2

    script("test_model", "--data", tiny, "--runs", "nowhere")
    assert "nowhere/ yet: nothing is tested" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (FOREST, "all False 2 12 1552 {accuracy:.2%} {val_accuracy:.2%}"),
        (
            NETWORK,
            "dense 1 {best_epoch} {loss:.4f} {accuracy:.2%} {val_loss:.4f} {val_accuracy:.2%}",
        ),
    ],
)
def test_a_finished_run_is_shown_stage_by_stage_or_setting_by_setting(in_runs, capsys, run, line):
    report.print_run(read_run(run))
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert NOTICE in shown
    assert line.format(**read_json(f"{run}/metrics.json")) in shown


def test_the_studys_rows_are_for_its_own_layout(in_runs, tmp_path, capsys):
    run = read_run(NETWORK)._replace(dataset_root=tmp_path / "pictures")
    report.print_run(run)
    assert "study" not in capsys.readouterr().out


def test_missing_test_images_are_named_or_left_out_and_recorded(own_tiny, in_runs, script):
    root, _ = own_tiny
    (root / "data_256" / "test.2.1.jpg").unlink()
    for run in (NETWORK, FOREST):
        command = ("test_model", "--data", root, "--run", run)
        with pytest.raises(BadInput, match=r"test\.2\.1\.jpg"):
            script(*command)
        script(*command, "--skip-unreadable", "--out", "report")
        assert read_json("report/metrics.json")["skipped_images"] == ["test.2.1.jpg"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--run nowhere", "nowhere is not a finished run"),
        ("--runs nowhere --predict grey.png", "no finished run on any pictures in nowhere/"),
        (f"--run {NETWORK} --predict empty", "no picture in empty"),
        (f"--run {NETWORK} --predict nowhere.png", "None of the 1 pictures could be read"),
        (f"--compare {FOREST} {NETWORK}", "two datasets"),
    ],
)
def test_what_does_not_fit_is_refused(in_runs, script, flags, message):
    (in_runs / "empty").mkdir()
    path = f"{NETWORK}/config.json"
    config = read_json(path)
    config["dataset"]["fingerprint"] = "another"
    write_json(path, config)
    with pytest.raises(BadInput, match=message):
        script("test_model", *flags.split())


def test_no_confidence_may_suffice(in_runs, script, capsys):
    write_json(f"{NETWORK}/unseen.json", {"confidence": [0.9], "right": [False]})
    script("test_model", "--run", NETWORK, "--accept", "0.95")
    out = capsys.readouterr().out
    assert "--accept 0.95 cannot be promised: it takes 45 right answers" in out
    assert "0 of the 1 surest on its validation split are right. Every answer is 'unsure'" in out

    # Infinity is no JSON
    figures = read_json(f"{NETWORK}/test/metrics.json")
    assert figures["accept"] == {"confidence": None, "answered": 0, "right": None}


def test_two_runs_are_compared_on_the_same_images(in_runs, script, capsys):
    script("test_model", "--run", FOREST)
    script("test_model", "--compare", FOREST, NETWORK)  # the second is tested first

    out = capsys.readouterr().out
    assert out.count(NOTICE) == 3
    for letter, run in (("A", FOREST), ("B", NETWORK)):
        assert f"{letter} = {run}: {accuracy_of(run):.2%} of 22 images" in out

    total, *_ = read_rows(f"{FOREST}/test/compared-with-tiny-finetune-i-none.csv")
    assert total["images"] == "22"


@pytest.mark.parametrize(
    ("right", "sentence"), [(20, "They differ: one is better."), (8, "No difference is seen")]
)
def test_the_better_one_is_named(capsys, right, sentence):
    """Of 40 images of one class of two; the second has not answered the last 10."""
    first = {number: ("a", number < right) for number in range(40)}
    second = {number: ("a", 20 <= number < 24) for number in range(30)}
    accuracies, rows = report.compare_answers(first, second, ["a", "b"])

    # for a class times two
    p = mcnemar(right, 4)
    found = [(row["images"], row["p"]) for row in rows]
    assert found == [(30, p), (30, min(1, 2 * p)), (0, 1)]

    report.print_comparison(["one", "two"], accuracies, rows)
    assert sentence in capsys.readouterr().out


@pytest.mark.filterwarnings("error::UserWarning")
def test_figures_are_by_class_and_balanced_accuracy_comes_first(tiny, capsys):
    dataset = load_dataset(tiny)
    museums = np.array(["A", "A", "B", ""])
    rows = SimpleNamespace(labels=np.array([1, 1, 1, 3]), museums=museums)
    answers = np.eye(4)[[1, 1, 2, 1]] * [[0.4], [0.9], [0.9], [0.6]]
    figures = report.figures_of_test(dataset.labels, rows, answers, 0.5)
    assert figures["confusion_matrix"][1] == [0, 2, 1, 0]
    assert figures["museums"] == {
        "A": {"accuracy": 1, "support": 2},
        "B": {"accuracy": 0, "support": 1},
    }
    assert figures["accept"] == {"confidence": 0.5, "answered": 3 / 4, "right": 1 / 3}

    # classes without a test image count in no average
    assert figures["macro avg"]["recall"] == figures["balanced_accuracy"] == 1 / 3

    # on screen
    report.print_report(figures, dataset)
    out = " ".join(capsys.readouterr().out.split())
    assert "without a test image, and so in no figure: Bronze, Woodcut" in out
    assert "balanced accuracy 33.33% 10.4 to 75.3 4 accuracy 50.00% 15.0 to 85.0 4" in out
    assert "of the 75.00% answered with --accept 33.33%" in out


def test_classes_may_have_the_names_of_columns_and_folders_spaces(
    own_tiny, workdir, narrow, script, capsys
):
    """From run to test to explanation by the commands that are printed."""
    names = ["accuracy", "dataset", "macro avg", "true"]
    root, _ = own_tiny
    for path in root.glob("*.csv"):
        text = path.read_text()
        for medium, name in zip(MEDIUMS, names):
            text = text.replace(medium, name)
        path.write_text(text)
    root = root.rename(workdir / "my pictures")

    command = ("random_forest", "--data", root, "--classifier", "linear", "--alpha", "1")
    script(*command, "--out", "my run")
    test = next_command(capsys.readouterr().out)
    script(*test, "--accept", "0.5")
    explain = next_command(capsys.readouterr().out)
    script(*explain)

    for name, row in zip(names, read_rows("my run/confusion_val.csv")):
        counts = [int(row[f"predicted: {other}"]) for other in names]
        assert (row["true"], sum(counts), row["dataset"]) == (name, 3, "tiny")
    assert list(read_json("my run/test/metrics.json")["classes"]) == names


def test_every_next_command_has_flags_of_its_script():
    calls = []
    for path in [*ROOT.glob("*.py"), *ROOT.glob("transfer/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print_next":
                calls.append(node)

    assert len(calls) > 5
    for call in calls:
        script = importlib.import_module(call.args[0].value.removesuffix(".py"))
        assert {flag.arg for flag in call.keywords} < set(vars(script.parse_args([])))
