"""Fine-tune VGG16 on MAMe: the convolutions' weights are loaded, a new head is trained, and then
perhaps more of the network, stage by stage (STUDY, "Fine-tuning").

    python finetune.py --head iii --unfreeze stepped      the study's best network
    python finetune.py --recipe strong                    a better one (docs/better.md)

The study's five strategies for head iii:
    --unfreeze none                          only the dense layers
    --unfreeze none --augment                the same with augmentation
    --unfreeze all --augment                 then all layers unfrozen
    --unfreeze stepped                       dense, then + block4 + block5, then all layers
    --unfreeze stepped --final-augment       then one more training with augmentation
"""

from transfer import flags
from transfer.console import print_next, run_script


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    flags.add_strategy_arguments(parser)
    flags.add_training_arguments(parser)
    flags.add_shared_arguments(parser)
    return flags.apply_recipe(parser.parse_args(argv))


def main(argv=None):
    args = parse_args(argv)
    from transfer.data import load_dataset
    from transfer.runs import run_name
    from transfer.train import plan_stages
    from transfer.training import train_network

    dataset = load_dataset(args.data, args.seed, args.cache)
    flags.resolve_arguments(args, dataset)
    name = run_name(
        "finetune",
        args.head,
        args.unfreeze,
        strong=args.recipe == "strong",
        augment=args.augment,
        final_augment=args.final_augment,
        balanced=args.balanced,
    )
    run = train_network(args, dataset, name, args.head, plan_stages(args), args.l2)
    print_next("test_model.py", run=run)


if __name__ == "__main__":
    run_script(main)
