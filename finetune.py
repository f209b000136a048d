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
from transfer.console import print_configuration, run_script
from transfer.study import SPLITS, fine_tuning_rows


def parse_args(argv=None):
    parser = flags.script_parser(__doc__)
    flags.add_strategy_arguments(parser)
    flags.add_training_arguments(parser)
    flags.add_shared_arguments(parser)
    return flags.apply_recipe(parser.parse_args(argv))


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
        model = build_model(args.image_size, classes, args.head, args.l2, args.seed, name)
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)
        settings = (args.image_size, args.cache, args.skip_unreadable)
        dataset = images.load_images(
            dataset, SPLITS, *settings
        )  # test too: what is wrong is said now
        stages, parts = train.plan_stages(args), ["finetune", args.head, args.unfreeze]
        parts += ["strong"] * (args.recipe == "strong") + ["augment"] * args.augment
        parts += ["final-augment"] * args.final_augment + ["balanced"] * args.balanced
        config = runs.describe_run(args, dataset, **train.decisive(stages, model))
        with runs.start_run(config, "-".join(parts), args.out, share) as run:
            history = train.train_stages(model, stages, dataset, args.cache, run)
            metrics = train.write_metrics(run, dataset, history)
            study = [] if dataset.in_folders else fine_tuning_rows(vars(args))
            train.print_metrics(run, metrics, study)
    print(f"Next: python test_model.py --run {run}")


if __name__ == "__main__":
    run_script(main)
