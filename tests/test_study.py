"""Which of the study's rows a run reruns: study.py."""

import pytest

import finetune
from transfer.study import fine_tuning_rows, forest_rows

FROZEN = ["1 head iii", "1 dense, no augmentation"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", FROZEN),
        ("--head i", ["1 head i"]),
        (
            "--unfreeze all --augment",
            [
                "1 dense, augmentation, first run",
                "1 dense, augmentation",
                "2 all unfrozen, augmentation",
            ],
        ),
        (
            "--unfreeze stepped --final-augment",
            [*FROZEN, "3 stepwise, no augmentation", "4 stepwise, then augmentation"],
        ),
        ("--schedule cosine", []),
        ("--recipe strong", []),
    ],
)
def test_a_run_reruns_its_own_row_and_those_that_it_begins_with(flags, expected):
    rows = fine_tuning_rows(vars(finetune.parse_args(flags.split())))
    assert [f"{stage} {row}" for stage, row in rows] == expected


@pytest.mark.parametrize(
    ("original", "settings", "expected"),
    [
        (True, {}, ["forest, all layers, leaf 2"]),
        (True, {"discretize": True}, ["forest, all layers, leaf 2, discretized"]),
        (True, {"layers": "last", "min_samples_leaf": 7}, ["forest, last of each block, leaf 7"]),
        (True, {"n_estimators": 12}, []),
        (
            False,
            {},
            ["forest on: all unfrozen, augmentation", "forest on: second fine-tuned model"],
        ),
    ],
)
def test_a_forest_reruns_the_rows_with_its_settings_and_model(original, settings, expected):
    usual = {"layers": "all", "discretize": False, "n_estimators": 50, "min_samples_leaf": 2}
    assert forest_rows(original, usual | settings) == expected
