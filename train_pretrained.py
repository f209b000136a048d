"""Train VGG16 as a whole on a dataset, from ImageNet's weights or from scratch (STUDY,
"Pretraining").

    python train_pretrained.py
    python train_pretrained.py --weights none --top gap

Its 13 convolutions are what `python finetune.py --weights RUN` starts from.
"""

from transfer import flags
from transfer.console import print_next, run_script
from transfer.study import ALL_BLOCKS


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
    from transfer.data import load_dataset
    from transfer.runs import run_name
    from transfer.train import Stage
    from transfer.training import train_network

    dataset = load_dataset(args.data, args.seed, args.cache)
    flags.resolve_arguments(args, dataset)
    name = run_name("pretrained", args.top, augment=args.augment, balanced=args.balanced)
    stage = Stage(
        name="all",
        blocks=ALL_BLOCKS,
        learning_rate=args.pretrain_learning_rate,
        epochs=args.pretrain_epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        augment=args.augment,
        balanced=args.balanced,
    )
    run = train_network(args, dataset, name, args.top, [stage])
    print_next("finetune.py", weights=run, data=dataset.root)


if __name__ == "__main__":
    run_script(main)
