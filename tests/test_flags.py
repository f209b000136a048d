"""Flags, and the recipes that fill those not given: flags.py, recipes.py."""

import pytest

import finetune
from transfer import flags
from transfer.console import BadInput
from transfer.recipes import STRONG, STUDY

GIVEN = {"head": "i", "schedule": "constant"}


@pytest.mark.parametrize(
    ("kind", "text"),
    [("natural", "-1"), ("positive_float", "0"), ("positive_float", "nan"), ("share", "1")],
)
def test_what_is_no_such_number_is_refused(kind, text):
    with pytest.raises(ValueError):
        getattr(flags, kind)(text)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", STUDY),
        ("--recipe strong", STRONG),
        ("--recipe strong --head i --schedule constant", {**STRONG, **GIVEN}),
    ],
)
def test_flags_not_given_take_the_recipes_values_and_given_ones_stay(flags, expected):
    args = finetune.parse_args(flags.split())
    assert vars(args).items() >= expected.items()


def test_final_augment_is_refused_where_it_contradicts_the_recipe():
    with pytest.raises(BadInput, match="--final-augment .* drop --recipe"):
        finetune.parse_args(["--recipe", "strong", "--final-augment"])
