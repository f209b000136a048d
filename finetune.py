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

from common import (
    add_shared_arguments,
    build_model,
    convolutions,
    import_keras,
    parse_arguments,
    resolve_arguments,
)
from dataset import load_dataset, load_images
from distribution import distributed
from files import BadInput
from recipes import add_recipe_arguments, apply_recipe, fine_tuning_rows, ingredients
from record import print_configuration, run_script, start_run
from study import UNFREEZE
from training import add_training_arguments, check_tensorboard, finish_training, train_steps
from weights import load_weights, weights_digest, with_precision


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("the strategy")
    group.add_argument(
        "--head",
        choices=("i", "ii", "iii", "pooled"),
        help="the study's, or global average pooling and the softmax (default: iii, or the recipe's)",
    )
    group.add_argument(
        "--unfreeze",
        choices=tuple(UNFREEZE),
        help="what trains after the dense layers (default: none, or the recipe's)",
    )
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        help="augment the training images in every step (--augmentation light: while convolutions train)",
    )
    group.add_argument(
        "--final-augment",
        action="store_true",
        help="after the last step, train once more what it trained, with augmentation",
    )
    add_recipe_arguments(parser)
    add_training_arguments(parser, "fine-tuning")
    add_shared_arguments(parser, resume=True)
    args = parse_arguments(parser, argv)
    apply_recipe(args)
    return args


def plan_steps(args):
    """The steps of a strategy, as `training.train_step` takes them."""
    steps = []
    for name, blocks in UNFREEZE[args.unfreeze]:
        augment = args.augment
        if args.augmentation == "light":  # the dense layers first settle on activations that are kept
            augment = "light" if augment and blocks else False
        steps.append({"name": name, "blocks": blocks, "augment": augment})
    if args.final_augment:
        name, blocks = UNFREEZE[args.unfreeze][-1]
        steps.append({"name": f"{name}, augmented", "blocks": blocks, "augment": True})
    for step in steps:
        unfrozen = bool(step["blocks"])
        step["learning_rate"] = args.fine_tune_learning_rate if unfrozen else args.learning_rate
        step["epochs"] = args.fine_tune_epochs if unfrozen else args.epochs
        step |= ingredients(args, unfrozen)
    return steps


def main(argv=None):
    args = parse_args(argv)
    if args.augment and args.final_augment:
        raise BadInput(
            "--final-augment adds augmentation after steps without it; with --augment every step "
            "has it already, so leave one of the two out."
        )
    check_tensorboard(args)
    dataset = load_dataset(args.data, args.seed)
    resolve_arguments(args, dataset)
    keras = import_keras()
    with distributed(keras, args) as share:
        keras.utils.set_random_seed(args.seed)
        print_configuration(args, dataset, "finetune.py")

        model = build_model(
            args.image_size, len(dataset.labels), args.head, args.l2, "vgg16_" + dataset.name
        )
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)
        dataset, images, skipped = load_images(
            dataset, ("train", "val"), args.image_size, args.cache, args.skip_unreadable
        )
        steps = plan_steps(args)
        strategy = (
            "strong-" * (args.recipe == "strong")
            + args.unfreeze
            + "-augment" * args.augment
            + "-final-augment" * args.final_augment
        )
        study = [] if dataset.in_folders else fine_tuning_rows(vars(args))
        decisive = {"steps": steps, "weights_sha256": weights_digest(model, convolutions(model))}
        with start_run(
            args, dataset, f"finetune-{args.head}-{strategy}", skipped, share, **decisive
        ) as run:
            history = train_steps(model, steps, dataset, images, args, run)
            finish_training(run, dataset, history, study)
        print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
