"""Train VGG16 as a whole on a dataset, from ImageNet's weights or from scratch (STUDY, "Pretraining").

    python train_pretrained.py
    python train_pretrained.py --weights none --top gap

Its 13 convolutions are what `python finetune.py --weights RUN` starts from. From scratch they are drawn
He-normal (He et al. 2015), which keeps the signal's size through all 13; Keras' default, Glorot's
uniform, halves its variance at each (`benchmarks/initialisation.py` shows both).
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
from record import print_configuration, run_script, start_run
from study import ALL_BLOCKS
from training import add_training_arguments, check_tensorboard, finish_training, train_steps
from weights import load_weights, weights_digest, with_precision


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_argument_group("the network")
    group.add_argument(
        "--top",
        choices=("fc", "gap"),
        default="fc",
        help="after the convolutions: VGG16's own fc1 and fc2 of 4096, or global average pooling "
        "(default: %(default)s)",
    )
    group.add_argument("--augment", action="store_true", help="augment the training images")
    add_training_arguments(parser, "pretraining")
    add_shared_arguments(parser, resume=True)
    return parse_arguments(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    check_tensorboard(args)
    dataset = load_dataset(args.data, args.seed)
    resolve_arguments(args, dataset)
    keras = import_keras()
    with distributed(keras, args) as share:
        keras.utils.set_random_seed(args.seed)
        print_configuration(args, dataset, "train_pretrained.py")

        model = build_model(args.image_size, len(dataset.labels), args.top, name="vgg16_" + dataset.name)
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)
        dataset, images, skipped = load_images(
            dataset, ("train", "val"), args.image_size, args.cache, args.skip_unreadable
        )
        step = {"name": "all", "blocks": ALL_BLOCKS, "augment": args.augment}
        step |= {"learning_rate": args.pretrain_learning_rate, "epochs": args.pretrain_epochs}
        name = f"pretrained-{args.top}" + "-augment" * args.augment
        decisive = {"steps": [step], "weights_sha256": weights_digest(model, convolutions(model))}
        with start_run(args, dataset, name, skipped, share, **decisive) as run:
            history = train_steps(model, [step], dataset, images, args, run)
            finish_training(run, dataset, history, study=[])
        print(
            f"Next: python finetune.py --head iii --unfreeze stepped --weights {run} --data {dataset.root}"
        )


if __name__ == "__main__":
    run_script(main)
