"""Store the features of VGG16's layers for every image: each convolution's activation averaged over
its positions, the dense layers as they are (STUDY, "Feature extraction").

    python extract_features.py                   all layers of the original VGG16: 12,416
    python extract_features.py --weights RUN --layers conv
                                                 a fine-tuned network's 13 convolutions: 4,224
    python extract_features.py --part 2/8        every 8th batch from the 2nd on

    --layers         original VGG16      fine-tuned, head iii
    all              12,416              4,992 (13 convolutions, fc1, fc2, fc3)
    conv              4,224              4,224 (13 convolutions: the study's figure)
    last              1,472              1,472
    block5_conv3        512                512
"""

from transfer import flags
from transfer.console import print_configuration, print_next, print_notice, run_script
from transfer.study import SPLITS


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    group = parser.add_argument_group("the features")
    flags.add_feature_arguments(group, layers="all")
    group.add_argument(
        "--part",
        type=flags.part_of,
        default=(1, 1),
        metavar="K/N",
        help="only the Kth of N parts of the batches; N processes, on any machines, do all "
        "(default: 1/1)",
    )
    flags.add_shared_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)

    from transfer import features
    from transfer.data import load_dataset

    dataset = load_dataset(args.data, args.seed, args.cache)
    features.resolve_weights(args, dataset)
    flags.resolve_arguments(args, dataset)
    print_configuration(args, dataset)

    # extract them, where they are not there yet
    spec = features.FeatureSpec(
        args.weights, args.layers, args.image_size, args.seed, args.precision
    )
    options = features.ExtractionOptions(
        args.batch_size, args.cache, args.skip_unreadable, args.devices, args.part
    )
    folder = features.extract_features(spec, dataset, SPLITS, options, args.out)

    # say where they are
    print_notice(dataset.notice)
    print(f"Results: {folder}/ (.npy and .csv of each split; features.json lists the columns)")
    if args.part != (1, 1):
        print("When all parts are done:")
    print_next("random_forest.py", leaf=2, trees=50, data=args.data, features=folder)


if __name__ == "__main__":
    run_script(main)
