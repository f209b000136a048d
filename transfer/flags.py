"""The flags of the scripts. No Keras here: a script parses first and imports then, so --help is quick."""

import argparse
import sys
from pathlib import Path

from transfer.console import BadInput
from transfer.recipes import RECIPES
from transfer.study import UNFREEZE


def script_parser(description):
    """An argparse parser for a script with this docstring."""
    as_written = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=as_written)


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


def part_of(text):
    """argparse type: "K/N" with 1 <= K <= N, as (K, N)."""
    part, count = map(positive, text.split("/"))
    if part > count:
        raise ValueError
    return part, count


def add_shared_arguments(parser):
    """The flags that mean the same in every script; None stands for the dataset's own default."""
    add = parser.add_argument_group("shared by all scripts").add_argument
    text = "in MAMe's layout, or folders of pictures (default: data/mame; without it, the demo)"
    add("--data", metavar="DIR", help=text)
    add("--seed", type=natural, default=0, metavar="N", help="default: %(default)s")
    add(
        "--image-size",
        type=natural,
        metavar="N",
        help="pixels a side (default: the dataset's; MAMe 224)",
    )
    add("--batch-size", type=positive, metavar="N", help="default: the dataset's; MAMe 32")
    text = "where decoded images and frozen activations are kept, or 'none' (default: %(default)s)"
    add("--cache", default="data/cache", metavar="DIR", help=text)
    text = "leave out images that are missing or cannot be decoded, and record which"
    add("--skip-unreadable", action="store_true", help=text)
    add(
        "--out", metavar="DIR", help="new folder for the results (default: named after what is run)"
    )


def add_network_arguments(group):
    """--weights, --precision and --devices, for the scripts that build a network."""
    text = (
        "imagenet, none (random), a run, a .keras file or an official .h5 (default: the dataset's)"
    )
    group.add_argument("--weights", metavar="W", help=text)
    text = "what the network computes in; its weights stay float32 (default: %(default)s)"
    choices = {"choices": ("float32", "bfloat16"), "default": "float32"}
    group.add_argument("--precision", help=text, **choices)
    text = "split each batch among N local devices (default: all accelerators; without any, N virtual ones)"
    group.add_argument("--devices", type=positive, metavar="N", help=text)


def add_feature_arguments(group, layers=None):
    """--layers and the network that they belong to. layers: the default."""
    text = "all, conv, last (of each block), or names separated by commas (default: all)"
    group.add_argument("--layers", default=layers, help=text)
    add_network_arguments(group)


def add_balanced(add):
    """--balanced, for all that is trained or fitted."""
    text = "weigh the classes so that all count alike, however many pictures they have"
    add("--balanced", action="store_true", help=text)


def add_training_arguments(parser, frozen=True):
    """The flags of training; frozen: there are stages with frozen convolutions."""
    group = parser.add_argument_group("training")
    add_network_arguments(group)
    add = group.add_argument
    text = "this process is one of several that train together (JAX; docs/devices.md)"
    add("--processes", action="store_true", help=text)
    add_balanced(add)
    rate, epochs = {"type": positive_float, "metavar": "LR"}, {"type": positive, "metavar": "N"}
    if not frozen:
        add("--learning-rate", dest="pretrain_learning_rate", help="MAMe: 1e-4", **rate)
        add("--epochs", dest="pretrain_epochs", help="at most; MAMe: 100", **epochs)
        return
    add("--learning-rate", help="while the convolutions are frozen; MAMe: 1e-4", **rate)
    add("--fine-tune-learning-rate", help="of unfrozen stages; MAMe: 1e-5", **rate)
    add("--epochs", help="of a frozen stage, at most; MAMe: 100", **epochs)
    add("--fine-tune-epochs", help="of an unfrozen stage, at most; MAMe: 100", **epochs)
    text = "of the dense layers of heads ii and iii (default: %(default)s, which fits the study's losses)"
    add("--l2", type=positive_float, default=0.01, help=text)


def add_strategy_arguments(parser):
    """The flags of finetune.py's strategy; those of RECIPES are None where not given (`apply_recipe`)."""
    add = parser.add_argument_group("the strategy").add_argument
    text = "sets the flags below where they are not given (default: %(default)s)"
    add("--recipe", choices=tuple(RECIPES), default="study", help=text)
    text = "the study's, or a softmax on every convolution's mean (study: iii; strong: layers)"
    add("--head", choices=("i", "ii", "iii", "multilayer"), help=text)
    text = "what trains after the dense layers (study: none; strong: all)"
    add("--unfreeze", choices=tuple(UNFREEZE), help=text)
    text = "augment the training images in every stage"
    add("--augment", action=argparse.BooleanOptionalAction, help=text)
    text = "after the last stage, train the same layers once more, with augmentation"
    add("--final-augment", action="store_true", help=text)
    text = "of the learning rate; cosine warms up for a tenth of a stage (study: constant; strong: cosine)"
    add("--schedule", choices=("constant", "cosine"), help=text)


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
    for key, value in dataset.defaults.items():
        if getattr(args, key, ...) is None:
            setattr(args, key, value)
    if args.image_size < 32:
        raise BadInput(f"--image-size {args.image_size}: VGG16 needs images of at least 32 pixels.")
    args.data = str(dataset.root)
    refuse_inside(args.out, [dataset.root])


def refuse_inside(out, folders):
    """BadInput where --out lies inside a folder of pictures: what is drawn would become some."""
    for folder in folders if out else ():
        if Path(out).resolve().is_relative_to(Path(folder).resolve()):
            raise BadInput(
                f"--out {out} lies among the pictures in {folder}; name a folder elsewhere."
            )
