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
from transfer.console import print_configuration, print_next, run_script
from transfer.study import SPLITS


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    flags.add_strategy_arguments(parser)
    flags.add_training_arguments(parser)
    flags.add_shared_arguments(parser)
    return flags.apply_recipe(parser.parse_args(argv))


def main(argv=None):
    args = parse_args(argv)
    from common import build_model
    from transfer import data, devices, images, report, runs, train, weights

    dataset = data.load_dataset(args.data, args.seed, args.cache)
    flags.resolve_arguments(args, dataset)
    name = runs.run_name(
        "finetune",
        args.head,
        args.unfreeze,
        strong=args.recipe == "strong",
        augment=args.augment,
        final_augment=args.final_augment,
        balanced=args.balanced,
    )
    with devices.on_devices(args.devices, args.batch_size, args.processes) as (share, computes_on):
        print_configuration(args, dataset, computes_on=computes_on)

        # VGG16's convolutions with their weights, and a new head
        classes = len(dataset.labels)
        model = build_model(
            args.image_size, classes, args.head, args.l2, args.seed, f"vgg16_{dataset.name}"
        )
        weights.load_weights(model, args.weights, args.seed)
        model = weights.with_precision(model, args.precision)

        # the test split too, so that what is wrong with it is said before training
        dataset = images.load_images(
            dataset, SPLITS, args.image_size, args.cache, args.skip_unreadable
        )

        # stage by stage, each from the best weights of the one before
        stages = train.plan_stages(args)
        config = runs.describe_run(args, dataset, **train.decisive(stages, model))
        with runs.start_run(config, name, args.out, share) as run:
            train.train_stages(model, stages, dataset, args.cache, run)
            report.print_run(runs.read_run(run))

    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")
    print_next("test_model.py", run=run)


if __name__ == "__main__":
    run_script(main)
