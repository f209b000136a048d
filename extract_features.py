"""Store the features of VGG16's layers for every image: each convolution's activation averaged over
its positions, the dense layers as they are (STUDY, "Feature extraction").

    python extract_features.py                          all layers of the original VGG16: 12,416
    python extract_features.py --model RUN --layers conv    a fine-tuned network's 13 convolutions: 4,224

    --layers         original VGG16      fine-tuned, head iii
    all              12,416              4,992 (13 convolutions, fc1, fc2, fc3)
    conv              4,224              4,224 (13 convolutions: the study's figure)
    last              1,472              1,472
    block5_conv3        512                512
"""

from pathlib import Path

from common import add_shared_arguments, resolve_arguments, script_parser
from transfer.dataset import SPLITS, load_dataset
from transfer.features import (
    Extraction,
    Source,
    add_feature_arguments,
    extract_features,
    features_folder,
    resolve_model,
)
from transfer.files import read_json
from transfer.screen import BadInput, print_configuration, print_notice, run_script


def parse_args(argv=None):
    parser = script_parser(__doc__)
    group = parser.add_argument_group("the features")
    add_feature_arguments(group, layers="all", workers=True)
    group.add_argument(
        "--splits",
        default=",".join(SPLITS),
        metavar="S,S",
        help="which splits, separated by commas (default: %(default)s)",
    )
    add_shared_arguments(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    splits = [split.strip() for split in args.splits.split(",")]
    if not set(splits) <= set(SPLITS):
        raise BadInput(f"--splits {args.splits}: choose among {', '.join(SPLITS)}.")
    dataset = load_dataset(args.data, args.seed)
    resolve_model(args, dataset)
    resolve_arguments(args, dataset)
    print_configuration(args, dataset)

    source = Source(args.model, args.layers, args.image_size, args.seed, args.precision)
    folder = Path(args.out or features_folder(source, dataset, args.skip_unreadable))
    how = Extraction(args.batch_size, args.cache, args.skip_unreadable, args.devices, args.workers)
    extract_features(source, dataset, splits, folder, how, check=bool(args.out))

    print_notice(dataset.notice)
    columns = read_json(folder / "features.json")["layers"]
    print(f"{max(stop for _, stop in columns.values())} features of {len(columns)} layers in {folder}/")
    print(f"Next: python random_forest.py --leaf 2 --trees 50 --data {args.data} --features {folder}")


if __name__ == "__main__":
    run_script(main)
