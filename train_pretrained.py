"""Train VGG16 as a whole on a dataset, from ImageNet's weights or from scratch (STUDY,
"Pretraining").

    python train_pretrained.py
    python train_pretrained.py --weights none --top gap

Its 13 convolutions are what `python finetune.py --weights RUN` starts from.
"""

from transfer import flags
from transfer.console import print_configuration, print_next, run_script
from transfer.study import ALL_BLOCKS, SPLITS


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    group = parser.add_argument_group("the network")
    group.add_argument(
        "--top",
        choices=("fc", "gap"),
        default="fc",
        help="layers after the convolutions: VGG16's fc1 and fc2 of 4096, or global average "
        "pooling (default: %(default)s)",
    )
    group.add_argument("--augment", action="store_true", help="augment the training images")
    flags.add_pretraining_arguments(parser)
    flags.add_shared_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from common import build_model
    from transfer import data, devices, images, report, runs, train, weights

    dataset = data.load_dataset(args.data, args.seed, args.cache)
    flags.resolve_arguments(args, dataset)
    name = runs.run_name("pretrained", args.top, augment=args.augment, balanced=args.balanced)
    with devices.on_devices(args.devices, args.batch_size, args.processes) as (share, computes_on):
        print_configuration(args, dataset, computes_on=computes_on)

        # VGG16 with a new top
        classes = len(dataset.labels)
        model = build_model(
            args.image_size, classes, args.top, seed=args.seed, name=f"vgg16_{dataset.name}"
        )
        weights.load_weights(model, args.weights, args.seed)
        model = weights.with_precision(model, args.precision)

        # the test split too, so that what is wrong with it is said before training
        dataset = images.load_images(
            dataset, SPLITS, args.image_size, args.cache, args.skip_unreadable
        )

        # all of it at once
        stage = train.Stage(
            name="all",
            blocks=ALL_BLOCKS,
            learning_rate=args.pretrain_learning_rate,
            epochs=args.pretrain_epochs,
            batch_size=args.batch_size,
            seed=args.seed,
            augment=args.augment,
            balanced=args.balanced,
        )
        config = runs.describe_run(args, dataset, **train.decisive([stage], model))
        with runs.start_run(config, name, args.out, share) as run:
            train.train_stages(model, [stage], dataset, args.cache, run)
            report.print_run(runs.read_run(run))

    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")
    print_next("finetune.py", weights=run, data=dataset.root)


if __name__ == "__main__":
    run_script(main)
