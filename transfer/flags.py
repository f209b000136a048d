"""The flags of the scripts. Without Keras: a script parses first, so that --help is quick."""

import argparse
import math
import sys
from pathlib import Path

from transfer.console import BadInput
from transfer.recipes import MOST_EPOCHS, RECIPES
from transfer.study import UNFREEZE

DEFAULT_CACHE = "data/cache"


def script_parser(description):
    """An argparse parser for a script with this docstring."""
    as_written = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(
        description=description, formatter_class=as_written, allow_abbrev=False
    )


def number(name, kind, least, most):
    """The argparse type of this name: an int or float, by `kind`, from `least` to `most`."""

    def parse(text):
        value = kind(text)
        if not least <= value <= most:
            raise ValueError
        return value

    parse.__name__ = name  # argparse says "invalid NAME value"
    return parse


natural = number("integer of 0 or more", int, 0, 2**31 - 1)
positive = number("integer of 1 or more", int, 1, 2**31 - 1)
positive_float = number("number above 0", float, sys.float_info.min, sys.float_info.max)
folds = number("integer of 3 or more", int, 3, 2**31 - 1)
below_one = math.nextafter(1, 0)
share = number("number between 0 and 1, such as 0.95,", float, sys.float_info.min, below_one)


def part_of(text):
    """argparse type: "K/N" with 1 <= K <= N, as (K, N)."""
    part, count = map(positive, text.split("/"))
    if part > count:
        raise ValueError
    return part, count


def adder(parser, title, without=()):
    """A function like `add_argument` for a new group of flags that leaves out some, by name."""
    group = parser.add_argument_group(title)

    def add(flag, **settings):
        if flag.removeprefix("--") not in without:
            group.add_argument(flag, **settings)

    return add


def add_shared_arguments(parser, without=()):
    """The flags that mean the same in every script; None stands for the dataset's own default.
    without: the names of those that a script has no use for."""
    add = adder(parser, "shared by all scripts", without)
    add(
        "--data",
        metavar="DIR",
        help="dataset in MAMe's layout, or folders of pictures (default: data/mame, else the demo)",
    )
    add("--seed", type=natural, default=0, metavar="N", help="random seed (default: %(default)s)")
    add(
        "--image-size",
        type=natural,
        metavar="N",
        help="pixels a side of the network's images (default: 224; demo: 32)",
    )
    add("--batch-size", type=positive, metavar="N", help="images per batch (default: 32)")
    add(
        "--cache",
        default=DEFAULT_CACHE,
        metavar="DIR",
        help="folder for decoded images, frozen layers' outputs and, where it is not the default, "
        "features; or 'none' (default: %(default)s)",
    )
    add(
        "--skip-unreadable",
        action="store_true",
        help="leave out images that are missing or cannot be decoded, and record which",
    )
    add(
        "--out", metavar="DIR", help="new folder for the results (default: named after what is run)"
    )


def add_network_arguments(add):
    """--weights, --precision and --devices, for the scripts that build a network."""
    add(
        "--weights",
        metavar="W",
        help="imagenet, none (random), a run, a .keras or an official .h5 file "
        "(default: imagenet; demo: none)",
    )
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the network computes in; its weights stay float32 (default: %(default)s)",
    )
    add(
        "--devices",
        type=positive,
        metavar="N",
        help="number of GPUs to use (default: all); on a CPU, N simulated devices, for testing",
    )


def add_feature_arguments(group, layers=None):
    """--layers and the network that they belong to. layers: the default."""
    group.add_argument(
        "--layers",
        default=layers,
        help="all, conv, last (of each block), or names separated by commas (default: all)",
    )
    add_network_arguments(group.add_argument)


def add_balanced(add):
    """--balanced, for all that is trained or fitted."""
    add("--balanced", action="store_true", help="make small classes count as much as large ones")


def add_processes(add):
    """--processes, for all that is trained."""
    add(
        "--processes",
        action="store_true",
        help="this process is one of several that train together (JAX; docs/devices.md)",
    )


def add_pretraining_arguments(parser):
    """The flags of training all of VGG16 at once."""
    add = adder(parser, "training")
    add_network_arguments(add)
    add_processes(add)
    add_balanced(add)
    add(
        "--learning-rate",
        dest="pretrain_learning_rate",
        type=positive_float,
        metavar="LR",
        help="learning rate (default: 1e-4)",
    )
    add(
        "--epochs",
        dest="pretrain_epochs",
        type=positive,
        metavar="N",
        help="number of epochs, at most (default: 100; demo: 6)",
    )


def add_training_arguments(parser, without=()):
    """The flags of training a new head, and then perhaps more of the network.
    without: those that a script has no use for."""
    add = adder(parser, "training", without)
    add_network_arguments(add)
    add_processes(add)
    add_balanced(add)
    add(
        "--learning-rate",
        type=positive_float,
        metavar="LR",
        help="learning rate while VGG16 is frozen (default: 1e-4; demo: 1e-3)",
    )
    add(
        "--fine-tune-learning-rate",
        type=positive_float,
        metavar="LR",
        help="learning rate of unfrozen stages (default: 1e-5; demo: 2e-6)",
    )
    add(
        "--epochs",
        type=positive,
        metavar="N",
        help="number of epochs of a frozen stage, at most (default: 100; demo: 20)",
    )
    add(
        "--fine-tune-epochs",
        type=positive,
        metavar="N",
        help="number of epochs of an unfrozen stage, at most (default: 100; demo: 2)",
    )
    add(
        "--l2",
        type=positive_float,
        default=0.01,
        help="L2 penalty of the dense layers of heads ii and iii (default: %(default)s, "
        "which fits the study's losses)",
    )


def add_strategy_arguments(parser):
    """The flags of finetune.py's strategy. Those of RECIPES are None where they are not given."""
    add = adder(parser, "the strategy")
    add(
        "--recipe",
        choices=tuple(RECIPES),
        default="study",
        help="the values of the flags below that are not given (default: %(default)s)",
    )
    add(
        "--head",
        choices=("i", "ii", "iii", "multilayer"),
        help="the study's i, ii or iii, or a softmax on every convolution's mean "
        "(study: iii; strong: multilayer)",
    )
    add(
        "--unfreeze",
        choices=tuple(UNFREEZE),
        help="what trains after the dense layers (study: none; strong: all)",
    )
    add(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="augment the training images in every stage",
    )
    add(
        "--final-augment",
        action="store_true",
        help="after the last stage, train the same layers once more, with augmentation",
    )
    add(
        "--schedule",
        choices=("constant", "cosine"),
        help="learning-rate schedule within each stage; cosine begins with a warm-up "
        "(study: constant; strong: cosine)",
    )


def apply_recipe(args):
    """Fill the flags not given with those of --recipe. BadInput where two contradict each other."""
    for key, value in RECIPES[args.recipe].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.final_augment and args.recipe != "study":
        raise BadInput(
            "--final-augment is a stage of the study's recipe; drop it, or drop --recipe."
        )
    if args.final_augment and args.augment:
        raise BadInput("--augment augments every stage already; drop it, or drop --final-augment.")
    return args


def resolve_arguments(args, dataset):
    """Fill what is still open in `args` with the dataset's own defaults; check the image size."""
    most = MOST_EPOCHS.get(getattr(args, "recipe", None), {})
    fewest = {key: min(number, dataset.defaults[key]) for key, number in most.items()}
    for key, value in {**dataset.defaults, **fewest}.items():
        if getattr(args, key, ...) is None:
            setattr(args, key, value)
    if args.image_size < 32:
        raise BadInput(f"--image-size {args.image_size}: VGG16 needs images of at least 32 pixels.")
    args.data = str(dataset.root)
    refuse_inside(args.out, [dataset.root])


def refuse_inside(out, folders):
    """BadInput where --out lies inside a folder of pictures: what is plotted would become some."""
    if out is None:
        return
    for folder in folders:
        if Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise BadInput(
                f"--out {out} lies among the pictures in {folder}; name a folder elsewhere."
            )
