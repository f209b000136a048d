"""How a network is trained: steps with all their settings, and the flags and recipes that they come from.

Head, steps and schedule of the strong recipe were chosen on real photographs (docs/better.md).
"""

from dataclasses import dataclass

from common import add_compute_arguments, positive, positive_float
from transfer.screen import BadInput
from transfer.study import FINE_TUNING_ROWS, UNFREEZE, rows_of

# What each flag is where it is not given.
STUDY = {"head": "iii", "unfreeze": "none", "augment": False, "optimizer": "adam", "schedule": "constant"}
STRONG = {"head": "layers", "unfreeze": "all", "schedule": "cosine"}
RECIPES = {"study": STUDY, "strong": STUDY | STRONG}
WARM_UP = 0.1  # share of a cosine schedule's steps in which the learning rate rises


@dataclass(frozen=True)
class Step:
    """One training of a strategy: all that decides it beside the data and the weights at its start."""

    name: str  # as the study calls what trains
    blocks: tuple  # of convolutions that train beside the head
    learning_rate: float
    epochs: int  # at most
    batch_size: int
    seed: int
    optimizer: str = "adam"
    augment: bool = False
    schedule: str = "constant"  # of the learning rate, or "cosine"


def plan_trainings(unfreeze, augment, final_augment):
    """The trainings of a strategy, in order: (what trains, blocks of convolutions in it, augmented?)."""
    trainings = [(name, blocks, augment) for name, blocks in UNFREEZE[unfreeze]]
    if final_augment:
        name, blocks = UNFREEZE[unfreeze][-1]
        trainings.append((f"{name}, augmented", blocks, True))
    return trainings


def plan_steps(args):
    """The steps of finetune.py's flags."""
    return [
        Step(
            name,
            blocks,
            args.fine_tune_learning_rate if blocks else args.learning_rate,
            args.fine_tune_epochs if blocks else args.epochs,
            args.batch_size,
            args.seed,
            args.optimizer,
            augment,
            args.schedule,
        )
        for name, blocks, augment in plan_trainings(args.unfreeze, args.augment, args.final_augment)
    ]


def fine_tuning_rows(arguments):
    """The study's rows that a run of finetune.py with these arguments (a dict) reruns: [(the number of the
    step that ends it, row of study.FINE_TUNING_ROWS)].

    A longer strategy begins with the steps of shorter ones, and so reruns their rows as well.
    """
    if arguments.get("schedule", STUDY["schedule"]) != STUDY["schedule"]:
        return []
    keys = ("unfreeze", "augment", "final_augment")
    plan = plan_trainings(*(arguments[key] for key in keys))
    found = []
    for row in rows_of(FINE_TUNING_ROWS, head=arguments["head"]):
        part = plan_trainings(*(row[key] for key in keys))
        if plan[: len(part)] == part:
            found.append((len(part), row))
    return found


def new_optimizer(step, steps_per_epoch):
    """A new Keras optimizer for a Step.

    schedule "cosine" rises linearly from 0 over WARM_UP of the steps and falls to 0 along half a cosine
    (Loshchilov and Hutter 2017).
    """
    import keras

    settings = {"learning_rate": step.learning_rate}
    if step.schedule == "cosine":
        updates = max(1, steps_per_epoch * step.epochs)
        warm_up = round(WARM_UP * updates)
        settings["learning_rate"] = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else step.learning_rate,
            max(1, updates - warm_up),
            warmup_target=step.learning_rate if warm_up else None,
            warmup_steps=warm_up,
        )
    return keras.optimizers.get({"class_name": step.optimizer, "config": settings})


# Flags -----------------------------------------------------------------------------------


def add_training_arguments(parser, frozen=True):
    """The flags of training; frozen: there are steps with frozen convolutions, and recipes for them."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--weights",
        metavar="W",
        help="of the convolutions: imagenet, none (drawn anew), or a path to an official Keras .h5, a "
        ".keras file or a run (default: the dataset's; MAMe imagenet, demo none)",
    )
    group.add_argument(
        "--optimizer",
        choices=("adam", "adamw", "sgd"),
        default=None if frozen else "adam",
        help="default: adam" + ", or the recipe's" * frozen,
    )
    add_compute_arguments(group, workers=True)
    group.add_argument(
        "--cache-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the activations of frozen blocks on disk; float16 takes half the space and differs in the "
        "fourth digit (default: %(default)s)",
    )
    rate = {"type": positive_float, "metavar": "LR"}
    epochs = {"type": positive, "metavar": "N"}
    if not frozen:
        group.add_argument("--learning-rate", dest="pretrain_learning_rate", help="MAMe: 1e-4", **rate)
        group.add_argument("--epochs", dest="pretrain_epochs", help="at most; MAMe: 100", **epochs)
        return
    group.add_argument("--learning-rate", help="while the convolutions are frozen; MAMe: 1e-4", **rate)
    group.add_argument("--fine-tune-learning-rate", help="of unfrozen steps; MAMe: 1e-5", **rate)
    group.add_argument("--epochs", help="of a frozen step, at most; MAMe: 100", **epochs)
    group.add_argument("--fine-tune-epochs", help="of an unfrozen step, at most; MAMe: 100", **epochs)
    group.add_argument(
        "--l2",
        type=positive_float,
        default=0.01,
        help="of the dense layers of heads ii and iii "
        "(default: %(default)s, with which the study's losses agree)",
    )


def add_recipe_arguments(parser):
    """--recipe and the flags of its ingredients, which override it."""
    group = parser.add_argument_group("the recipe")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="study",
        help="what the flags marked 'recipe' are where they are not given (default: %(default)s)",
    )
    group.add_argument(
        "--schedule",
        choices=("constant", "cosine"),
        help="of the learning rate; cosine rises over the first tenth of a step's batches and falls to 0 "
        "at its last epoch (recipe)",
    )


def apply_recipe(args):
    """Fill the flags that were not given with those of --recipe. BadInput where one needs another."""
    for key, value in RECIPES[args.recipe].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.final_augment and args.recipe != "study":
        raise BadInput("--final-augment is a step of the study's recipe; leave it out or --recipe.")
    if args.final_augment and args.augment:
        raise BadInput(
            "--final-augment adds augmentation after steps without it; with --augment every step "
            "has it already, so leave one of the two out."
        )
