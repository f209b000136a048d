"""Train VGG16 as a whole on a dataset, from ImageNet's weights or from scratch (STUDY, "Pretraining").

    python train_pretrained.py
    python train_pretrained.py --weights none --top gap

Its 13 convolutions are what `python finetune.py --weights RUN` starts from. From scratch they are drawn
He-normal (He et al. 2015), which keeps the signal's size through all 13; Keras' default, Glorot's
uniform, halves its variance at each (`benchmarks/initialisation.py` shows both).
"""

from common import add_shared_arguments, parse_arguments, resolve_arguments, script_parser
from transfer.dataset import load_dataset
from transfer.recipes import Step, add_training_arguments
from transfer.screen import run_script
from transfer.study import ALL_BLOCKS
from transfer.training import run_training


def parse_args(argv=None):
    parser = script_parser(__doc__)
    group = parser.add_argument_group("the network")
    group.add_argument(
        "--top",
        choices=("fc", "gap"),
        default="fc",
        help="after the convolutions: VGG16's own fc1 and fc2 of 4096, or global average pooling "
        "(default: %(default)s)",
    )
    group.add_argument("--augment", action="store_true", help="augment the training images")
    add_training_arguments(parser, frozen=False)
    add_shared_arguments(parser, resume=True)
    return parse_arguments(parser, argv)


def main(argv=None):
    args = parse_args(argv)
    dataset = load_dataset(args.data, args.seed)
    resolve_arguments(args, dataset)
    step = Step(
        "all",
        ALL_BLOCKS,
        args.pretrain_learning_rate,
        args.pretrain_epochs,
        args.batch_size,
        args.seed,
        args.optimizer,
        args.augment,
    )
    name = f"pretrained-{args.top}" + "-augment" * args.augment
    run = run_training(args, dataset, args.top, [step], name)
    print(f"Next: python finetune.py --head iii --unfreeze stepped --weights {run} --data {dataset.root}")


if __name__ == "__main__":
    run_script(main)
