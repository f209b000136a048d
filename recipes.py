"""How a network is fine-tuned: the study's recipe, and a stronger one, as settings of the same flags.

Head and schedule of the strong one were chosen on real photographs (`benchmarks/recipe.py`), where AdamW,
pooling, label smoothing, averaged weights, a light augmentation and mixup did not help, and mirror images
in the test only where just the head trained; their flags stay so that the comparison can be rerun on other
pictures. Its steps are the study's best.
"""

import argparse

from files import BadInput
from study import FINE_TUNING_ROWS, rows_of

# A gentler augmentation than the study's, in the same terms.
LIGHT_AUGMENTATION = {
    "rotation_range": 5,
    "width_shift_range": 0.05,
    "height_shift_range": 0.05,
    "zoom_range": 0.1,
    "horizontal_flip": True,
}
# What each flag is where it is not given. A None is left to the dataset.
STUDY = {
    "head": "iii",
    "unfreeze": "none",
    "augment": False,
    "augmentation": "study",
    "optimizer": "adam",
    "schedule": "constant",
    "fine_tune_learning_rate": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "average_weights": False,
    "flips": False,
}
STRONG = {"head": "ii", "unfreeze": "stepped", "schedule": "cosine"}
RECIPES = {"study": STUDY, "strong": STUDY | STRONG}
WARM_UP = 0.1  # share of a cosine schedule's steps in which the learning rate rises


def add_recipe_arguments(parser):
    """--recipe and the flags of its ingredients, which override it."""
    group = parser.add_argument_group("the recipe")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="study",
        help="what the flags marked 'recipe' are where they are not given (default: %(default)s)",
    )
    boolean = argparse.BooleanOptionalAction
    group.add_argument(
        "--augmentation",
        choices=("study", "light"),
        help="what --augment draws from: rotation, shifts, zoom and flips as in the study, or less of each "
        "(recipe)",
    )
    group.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="of the learning rate; cosine rises over the first tenth of a step's batches and falls to 0 "
        "at its last epoch (recipe)",
    )
    group.add_argument("--label-smoothing", type=share, metavar="S", help="0 to 1 (recipe)")
    group.add_argument(
        "--mixup",
        type=share,
        metavar="ALPHA",
        help="mix training images and labels by shares from Beta(ALPHA, ALPHA) while convolutions train; "
        "0 for none (recipe)",
    )
    group.add_argument(
        "--average-weights",
        action=boolean,
        help="keep a moving average of the weights over about an epoch (recipe)",
    )
    group.add_argument("--flips", action=boolean, help="test on each picture and its mirror image (recipe)")


def share(text):
    """argparse type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def apply_recipe(args):
    """Fill the flags that were not given with those of --recipe. BadInput where one needs another."""
    for key, value in RECIPES[args.recipe].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.final_augment and args.recipe != "study":
        raise BadInput("--final-augment is a step of the study's recipe; leave it out or --recipe.")


def ingredients(args, unfrozen):
    """What `training.train_step` needs of a recipe for one step; nothing where it is the study's."""
    chosen = {
        "schedule": args.schedule,
        "label_smoothing": args.label_smoothing,
        "mixup": args.mixup if unfrozen else 0.0,
        "average_weights": args.average_weights,
    }
    return {key: value for key, value in chosen.items() if value != STUDY[key]}


def fine_tuning_rows(arguments):
    """The study's rows that a run of finetune.py with these arguments (a dict) reruns."""
    ours = ("augmentation", "schedule", "label_smoothing", "mixup", "average_weights")
    if any(arguments.get(key, STUDY[key]) != STUDY[key] for key in ours):
        return []
    keys = ("head", "unfreeze", "augment", "final_augment")
    return rows_of(FINE_TUNING_ROWS, **{key: arguments[key] for key in keys})


def new_optimizer(
    name, learning_rate, steps_per_epoch=1, epochs=1, schedule="constant", average_weights=False
):
    """A new Keras optimizer by its registered name.

    schedule: "cosine" rises linearly from 0 over WARM_UP of the steps and falls to 0 along half a cosine
    (Loshchilov and Hutter 2017). average_weights: keep an exponential moving average of the weights with
    a horizon of about an epoch (Polyak averaging).
    """
    import keras

    settings = {"learning_rate": learning_rate}
    if schedule == "cosine":
        steps = max(1, steps_per_epoch * epochs)
        warm_up = round(WARM_UP * steps)
        settings["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else learning_rate,
            max(1, steps - warm_up),
            warmup_target=learning_rate if warm_up else None,
            warmup_steps=warm_up,
        )
    if average_weights:
        settings |= {"use_ema": True, "ema_momentum": 1 - 1 / max(2, steps_per_epoch)}
    return keras.optimizers.get({"class_name": name, "config": settings})
