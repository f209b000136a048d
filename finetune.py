"""Fine-tune VGG16 on MAMe: the convolutions' weights are loaded, a new head is trained, and then
perhaps more of the network, step by step (STUDY, "Fine-tuning").

    python finetune.py --head iii --unfreeze stepped      the study's best network
    python finetune.py --head iii --unfreeze all --augment

The study's five strategies for head iii:
    --unfreeze none                          only the dense layers
    --unfreeze none --augment                the same with augmentation
    --unfreeze all --augment                 then all layers unfrozen
    --unfreeze stepped                       dense, then + block4 + block5, then all layers
    --unfreeze stepped --final-augment       then one more training with augmentation

Beside the study's recipe there is a stronger one (recipes.py):
    python finetune.py --recipe strong
"""

import argparse

from common import add_shared_arguments, parse_arguments, resolve_arguments, script_parser
from transfer.dataset import load_dataset
from transfer.recipes import (
    add_recipe_arguments,
    add_training_arguments,
    apply_recipe,
    fine_tuning_rows,
    plan_steps,
)
from transfer.screen import run_script
from transfer.study import UNFREEZE
from transfer.training import run_training


def parse_args(argv=None):
    parser = script_parser(__doc__)
    group = parser.add_argument_group("the strategy")
    group.add_argument(
        "--head",
        choices=("i", "ii", "iii", "layers"),
        help="the study's, or the softmax on every convolution's mean (default: iii, or the recipe's)",
    )
    group.add_argument(
        "--unfreeze",
        choices=tuple(UNFREEZE),
        help="what trains after the dense layers (default: none, or the recipe's)",
    )
    group.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="augment the training images in every step"
    )
    group.add_argument(
        "--final-augment",
        action="store_true",
        help="after the last step, train once more what it trained, with augmentation",
    )
    add_recipe_arguments(parser)
    add_training_arguments(parser)
    add_shared_arguments(parser, resume=True)
    args = parse_arguments(parser, argv)
    apply_recipe(args)
    return args


def main(argv=None):
    args = parse_args(argv)
    dataset = load_dataset(args.data, args.seed)
    resolve_arguments(args, dataset)
    name = (
        f"finetune-{args.head}-"
        + "strong-" * (args.recipe == "strong")
        + args.unfreeze
        + "-augment" * args.augment
        + "-final-augment" * args.final_augment
    )
    study = [] if dataset.in_folders else fine_tuning_rows(vars(args))
    run = run_training(args, dataset, args.head, plan_steps(args), name, study)
    print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
