"""Train VGG16 as a whole on a dataset, from ImageNet's weights or from scratch (STUDY, "Pretraining").

    python train_pretrained.py
    python train_pretrained.py --weights none --top gap

Its 13 convolutions are what `python finetune.py --weights RUN` starts from.
"""

from transfer import flags
from transfer.console import print_configuration, run_script
from transfer.study import ALL_BLOCKS, SPLITS


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    group = parser.add_argument_group("the network")
    text = "after the convolutions: VGG16's fc1 and fc2 of 4096, or global average pooling (default: fc)"
    group.add_argument("--top", choices=("fc", "gap"), default="fc", help=text)
    group.add_argument("--augment", action="store_true", help="augment the training images")
    flags.add_training_arguments(parser, frozen=False)
    flags.add_shared_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from common import build_model
    from transfer import data, images, runs, train
    from transfer.devices import on_devices
    from transfer.weights import load_weights, with_precision

    dataset = data.load_dataset(args.data, args.seed)
    flags.resolve_arguments(args, dataset)
    with on_devices(args.devices, args.batch_size, args.processes) as (share, computes_on):
        print_configuration(args, dataset, computes_on)
        classes, name = len(dataset.labels), f"vgg16_{dataset.name}"
        model = build_model(args.image_size, classes, args.top, seed=args.seed, name=name)
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)
        settings = (args.image_size, args.cache, args.skip_unreadable)
        dataset = images.load_images(
            dataset, SPLITS, *settings
        )  # test too: what is wrong is said now
        rate, epochs = args.pretrain_learning_rate, args.pretrain_epochs
        keys = ("batch_size", "seed", "augment", "balanced")
        stages = [
            train.Stage(
                "all", ALL_BLOCKS, rate, epochs, **{key: getattr(args, key) for key in keys}
            )
        ]
        config = runs.describe_run(args, dataset, **train.decisive(stages, model))
        name = f"pretrained-{args.top}" + "-augment" * args.augment + "-balanced" * args.balanced
        with runs.start_run(config, name, args.out, share) as run:
            history = train.train_stages(model, stages, dataset, args.cache, run)
            train.print_metrics(run, train.write_metrics(run, dataset, history))
    print(
        f"Next: python finetune.py --head iii --unfreeze stepped --weights {run} --data {dataset.root}"
    )


if __name__ == "__main__":
    run_script(main)
