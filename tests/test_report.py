"""The report on runs and on the test split, and the comparison of two: report.py, test_model.py."""

import ast
import importlib
import json

import numpy as np
import pytest
from conftest import MEDIUMS, ROOT, next_command, read_rows, write_csv

import test_model
from transfer import report
from transfer.console import BadInput
from transfer.data import load_dataset
from transfer.files import read_json, write_json
from transfer.runs import read_run
from transfer.stats import mcnemar, wilson

FOREST = "runs/tiny-forest-none-all-trees12-leaf2"
NETWORK = "runs/tiny-finetune-i-none"
NOTICE = "TINY DATASET of the tests."


def right_of(run):
    """Whether each image of the test split was told right, bool (n,)."""
    rows = read_rows(f"{run}/test/predictions.csv")
    return np.array([row["true"] == row["predicted_1"] for row in rows])


def change_json(path, **changes):
    write_json(path, read_json(path) | changes)


@pytest.mark.parametrize("run", [FOREST, NETWORK])
def test_figures_are_those_of_the_predictions(in_runs, script, capsys, run):
    script("test_model", "--run", run)
    assert capsys.readouterr().out.count(NOTICE) == 2
    figures = read_json(f"{run}/test/metrics.json")
    rows = read_rows(f"{run}/test/predictions.csv")
    assert figures["images"] == 22
    for row in rows:  # the class is in the file's name
        assert row["file"].startswith(f"test.{MEDIUMS.index(row['true'])}.")

    right = right_of(run)
    assert figures["accuracy"] == right.mean()
    assert np.trace(figures["confusion_matrix"]) == right.sum()
    assert figures["dataset"]["notice"] == NOTICE


def test_without_a_run_the_best_validation_accuracy_is_taken(tiny, in_runs, script, capsys):
    change_json(f"{FOREST}/metrics.json", val_accuracy=0.9)
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


def test_the_studys_rows_are_for_its_own_trainings_and_layout(in_runs, tmp_path, capsys):
    run = read_run(NETWORK)._replace(dataset_root=tmp_path / "pictures")
    report.print_run(run)
    assert "study" not in capsys.readouterr().out

    change_json(f"{NETWORK}/config.json", script="train_pretrained.py")
    assert report.study_rows(read_run(NETWORK)) == {}


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
        (["--run", "nowhere"], "nowhere is not a finished run"),
        (["--runs", "nowhere", "--predict", "a.jpg"], "no finished run"),
        (["--compare", FOREST, NETWORK], "two datasets"),
        (["--run", NETWORK], "was trained on other classes than"),
    ],
)
def test_what_does_not_fit_is_refused(in_runs, script, flags, message):
    about = read_json(f"{NETWORK}/config.json")["dataset"] | {"fingerprint": "another"}
    change_json(f"{NETWORK}/config.json", dataset=about, labels=["Brass", *MEDIUMS[1:]])
    with pytest.raises(BadInput, match=message):
        script("test_model", *flags)


def test_the_script_is_no_file_of_tests():
    assert not [name for name in vars(test_model) if name.lower().startswith("test")]


def test_no_confidence_may_suffice(in_runs, script, capsys):
    write_json(f"{NETWORK}/unseen.json", {"confidence": [0.9], "right": [False]})
    script("test_model", "--run", NETWORK, "--accept", "0.95")
    out = capsys.readouterr().out
    assert "--accept 0.95 cannot be promised: it takes 45 right answers" in out
    assert "0 of the 1 surest on its validation split are right. Every answer is 'unsure'" in out
    assert "of the 0.00% answered with --accept" in out

    with open(f"{NETWORK}/test/metrics.json") as file:
        figures = json.load(file, parse_constant=pytest.fail)  # Infinity is no JSON
    assert figures["accept"] == {"confidence": None, "answered": 0, "right": None}


def test_two_runs_are_compared_on_the_same_images(in_runs, script, capsys):
    script("test_model", "--run", FOREST)
    script("test_model", "--compare", FOREST, NETWORK)  # the second is tested first

    one = right_of(FOREST)
    two = right_of(NETWORK)
    total, *_ = read_rows(f"{FOREST}/test/compared-with-tiny-finetune-i-none.csv")
    assert total["images"] == "22"
    assert int(total["only_A_right"]) == np.sum(one & ~two)
    assert int(total["only_B_right"]) == np.sum(two & ~one)

    out = capsys.readouterr().out
    assert f"A = {FOREST}: {one.mean():.2%} of 22 images" in out
    assert out.count(NOTICE) == 3


@pytest.mark.parametrize(
    ("right", "sentence"), [(20, "They differ: one is better."), (8, "No difference is seen")]
)
def test_the_better_one_is_named(capsys, right, sentence):
    """Of 40 images of one class of two; the second has not answered the last 10."""
    first = {number: ("a", number < right) for number in range(40)}
    second = {number: ("a", 20 <= number < 24) for number in range(30)}
    accuracies, rows = report.compare_answers(first, second, ["a", "b"])
    p = mcnemar(right, 4)
    assert accuracies == pytest.approx([right / 30, 4 / 30])
    assert [(row["images"], row["p"]) for row in rows] == [(30, p), (30, min(1, 2 * p)), (0, 1)]

    report.print_comparison(["one", "two"], accuracies, rows)
    assert sentence in capsys.readouterr().out


@pytest.mark.filterwarnings("error::UserWarning")
def test_figures_are_by_class_and_balanced_accuracy_comes_first(tiny, capsys):
    dataset = load_dataset(tiny)
    rows = (
        dataset.splits["test"]
        .take(range(4))
        ._replace(labels=np.array([1, 1, 1, 3]), museums=np.array(["A", "A", "B", ""]))
    )
    answers = np.eye(4)[[1, 1, 2, 1]] * [[0.4], [0.9], [0.9], [0.6]]
    figures = report.figures_of_test(dataset.labels, rows, answers, 0.5)
    assert figures["classes"]["Oil on canvas"]["recall"] == 2 / 3
    assert figures["confusion_matrix"][1] == [0, 2, 1, 0]
    assert figures["intervals"]["accuracy"] == wilson(0.5, 4)
    assert list(figures["museums"]) == ["A", "B"]
    assert figures["museums"]["A"] == {"accuracy": 1, "support": 2}
    assert figures["accept"] == {"confidence": 0.5, "answered": 3 / 4, "right": 1 / 3}

    # classes without a test image count in no average
    assert list(figures["classes"]) == ["Oil on canvas", "Woven fabric"]
    assert figures["macro avg"]["recall"] == figures["balanced_accuracy"] == 1 / 3

    report.print_report(figures, dataset)
    out = " ".join(capsys.readouterr().out.split())
    assert "without a test image, and so in no figure: Bronze, Woodcut" in out
    assert "balanced accuracy 33.33% 10.4 to 75.3 4 accuracy 50.00%" in out
    assert "of the 75.00% answered with --accept 33.33%" in out


def test_classes_may_have_the_names_of_columns_and_folders_spaces(
    own_tiny, workdir, narrow, script, capsys
):
    """From run to test to explanation by the commands that are printed."""
    names = ["accuracy", "dataset", "macro avg", "true"]
    root, rows = own_tiny
    called = dict(zip(MEDIUMS, names))
    write_csv(root, [(file, called[medium], *rest) for file, medium, *rest in rows])
    (root / "MAMe_labels.csv").write_text("".join(f"{i},{name}\n" for i, name in enumerate(names)))
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
