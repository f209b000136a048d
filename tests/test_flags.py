"""Flags, and the recipes that fill those not given: flags.py, recipes.py."""

import pytest

import finetune
from transfer import flags
from transfer.console import BadInput
from transfer.recipes import STRONG, STUDY


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("natural", "-1"),
        ("positive", "0"),
        ("positive_float", "0"),
        ("positive_float", "nan"),
        ("share", "95"),  # a percentage
        ("share", "1"),
        ("part_of", "3/2"),
    ],
)
def test_what_is_no_such_number_is_refused(kind, text):
    with pytest.raises(ValueError):
        getattr(flags, kind)(text)


@pytest.mark.parametrize(
    ("command", "recipe"),
    [([], STUDY), (["--recipe", "study"], STUDY), (["--recipe", "strong"], STRONG)],
)
def test_flags_not_given_take_the_recipes_values_and_given_ones_stay(command, recipe):
    args = finetune.parse_args(command)
    assert vars(args).items() >= recipe.items()

    args = finetune.parse_args([*command, "--head", "i", "--schedule", "constant"])
    expected = {**recipe, "head": "i", "schedule": "constant"}
    assert vars(args).items() >= expected.items()


@pytest.mark.parametrize("given", [("--recipe", "strong"), ("--augment",)])
def test_final_augment_is_refused_where_it_contradicts(given):
    with pytest.raises(BadInput, match="drop --final-augment|drop --recipe"):
        finetune.parse_args([*given, "--final-augment"])
