"""A training from its dataset to its run: what finetune.py and train_pretrained.py share."""

from dataclasses import asdict

from common import build_model, convolutions
from transfer.console import print_configuration
from transfer.devices import on_devices
from transfer.images import load_images
from transfer.report import print_run
from transfer.runs import describe_run, read_run, start_run
from transfer.study import SPLITS
from transfer.train import train_stages
from transfer.weights import load_weights, weights_digest, with_precision


def train_network(args, dataset, name, head, stages, l2=0.0):
    """Build VGG16 with one of common.HEADS, train it through `stages` (list of Stage) and print its
    figures. name: of what is trained, for the run's folder. l2: penalty of the dense layers of
    heads ii and iii. Returns the run's folder."""
    with on_devices(args.devices, args.batch_size, args.processes) as (share, computes_on):
        print_configuration(args, dataset, computes_on=computes_on)

        # VGG16's convolutions with their weights, and a new head
        classes = len(dataset.labels)
        model = build_model(args.image_size, classes, head, l2, args.seed, f"vgg16_{dataset.name}")
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)

        # the test split too, so that what is wrong with it is said before training
        dataset = load_images(dataset, SPLITS, args.image_size, args.cache, args.skip_unreadable)

        # stage by stage, each from the best weights of the one before
        config = describe_run(
            args,
            dataset,
            stages=list(map(asdict, stages)),
            weights_sha256=weights_digest(model, convolutions(model)),
        )
        with start_run(config, name, args.out, share) as run:
            train_stages(model, stages, dataset, args.cache, run)
            print_run(read_run(run))

    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")
    return run
