"""What each ingredient of the strong recipe is worth, on real photographs, over three seeds.

    python benchmarks/vgg19_start.py
    python train_pretrained.py --data data/demo --weights data/vgg19-blocks1-3.keras --top gap \\
        --image-size 64 --epochs 6 --out runs/pretrained-64
    python benchmarks/recipe.py dense
    python benchmarks/recipe.py unfrozen

TrashNet (six materials; needs the folder of real photographs beside the repository); the network comes from
VGG19 blocks 1-3 and pretraining on the demo's textures. Two parts, as unfrozen training is slow on a CPU:

    dense       only the head trains, on all photographs at 64 pixels
    unfrozen    then block4 and block5 too, on 50 photographs a class at 48 pixels

In each the strong recipe, then the same with one ingredient changed at a time, then the study's: the flags
of finetune.py, which are printed. The figure is the accuracy on the test split of the epoch with the best
validation accuracy; the difference is to the strong recipe with the same seed.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import PHOTOGRAPHS, ROOT, describe_machine

COUNTS = {"train": 50, "val": 20, "test": None}  # photographs a class in the part "unfrozen"
SMALL = "data/trashnet-50"
STUDY = "--recipe study"
PARTS = {
    "dense": "--unfreeze none --image-size 64 --learning-rate 1e-3 --epochs 20",
    "unfrozen": "--unfreeze block4 --image-size 48 --batch-size 16 --learning-rate 1e-3 --epochs 15"
    " --fine-tune-epochs 4",
}
VARIANTS = {
    "dense": {
        "strong": "",
        "head i": "--head i",
        "head ii": "--head ii",
        "pooling instead of flattening": "--head pooled",
        "Adam": "--optimizer adam",
        "constant learning rate": "--schedule constant",
        "no label smoothing": "--label-smoothing 0",
        "no averaged weights": "--no-average-weights",
        "the study's recipe": STUDY,
    },
    "unfrozen": {
        "strong": "",
        "no mixup": "--mixup 0",
        "no augmentation": "--no-augment",
        "the study's recipe": STUDY,
    },
}


def link_photographs(folder):
    """Make `folder`/SPLIT/CLASS with links to the first COUNTS photographs of each class."""
    for split, count in COUNTS.items():
        for of_class in sorted((PHOTOGRAPHS / split).iterdir()):
            place = folder / split / of_class.name
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(of_class.iterdir())[:count]:
                if not (place / path.name).exists():
                    (place / path.name).symlink_to(path.resolve())


def test_accuracies(flags, activations):
    """{flips: accuracy on the test split} of one training with these flags of finetune.py.

    activations: {} at first, then what the frozen convolutions give for the test split.
    """
    import common
    import finetune
    import training
    from dataset import load_dataset, load_images
    from weights import load_weights

    keras = common.import_keras()
    args = finetune.parse_args(flags.split())
    dataset = load_dataset(args.data)
    common.resolve_arguments(args, dataset)
    keras.backend.clear_session()
    keras.utils.set_random_seed(args.seed)
    model = common.build_model(args.image_size, len(dataset.labels), args.head, args.l2)
    load_weights(model, args.weights, args.seed)
    dataset, images, _ = load_images(dataset, ("train", "val", "test"), args.image_size, args.cache)
    history, best = [], None
    with tempfile.TemporaryDirectory() as folder:
        for step in finetune.plan_steps(args):
            rows, before = [], len(history)
            record = (model, step, dataset, images, args, before, Path(folder))
            training.train_step(*record, lambda _, figures, rows=rows: rows.append(figures))
            best_before = max((row["val_accuracy"] for row in history), default=-1)
            if max(row["val_accuracy"] for row in rows) > best_before:
                best = model.get_weights()
            history += rows
    model.set_weights(best)
    lower, upper = common.split_model(model, "block5_pool")
    frozen = args.unfreeze == "none"
    if not frozen or not activations:
        array = images["test"]
        for flip in (False, True):
            view = np.ascontiguousarray(array[:, :, ::-1]) if flip else array
            produce = common.outputs_of(lower, view, 32)
            parts = [produce(n, min(n + 32, len(view))) for n in range(0, len(view), 32)]
            activations[flip] = np.concatenate(parts)
    plain, mirrored = (np.asarray(upper.predict(activations[flip], verbose=0)) for flip in (False, True))
    labels = dataset.splits["test"].labels
    shown = {False: plain, True: (plain + mirrored) / 2}
    found = {flips: float(np.mean(p.argmax(axis=1) == labels)) for flips, p in shown.items()}
    return found if args.flips else {False: found[False]}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--weights", default="runs/pretrained-64", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there is nothing to measure.")
    os.chdir(ROOT)
    link_photographs(Path(SMALL))
    data = {"dense": os.path.relpath(PHOTOGRAPHS), "unfrozen": SMALL}[args.part]
    print(describe_machine())
    print("TrashNet, 'VGG19 blocks 1-3', pretrained on the demo's textures\n", flush=True)
    figures, activations, without = {}, {}, "no mirror images in the test"
    for seed in args.seeds:
        for name, variant in VARIANTS[args.part].items():
            recipe = "" if STUDY in variant else "--recipe strong "
            flags = f"--data {data} --weights {args.weights} {recipe}{PARTS[args.part]} {variant}"
            flags += f" --seed {seed}"
            stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # Keras' lines of every epoch
            found = test_accuracies(flags, activations)
            sys.stdout = stdout
            figures[name, seed] = found[max(found)]
            if name == "strong":
                figures[without, seed] = found[False]
            print(f"  {100 * figures[name, seed]:.2f}  finetune.py {flags}", flush=True)
    print(f"\ntest accuracy in percent, seeds {args.seeds}; mean; mean difference to strong (each seed's)")
    strong = np.array([figures["strong", seed] for seed in args.seeds])
    for name in [*VARIANTS[args.part], without]:
        row = np.array([figures[name, seed] for seed in args.seeds])
        shown = " ".join(f"{100 * value:6.2f}" for value in row)
        each = " ".join(f"{100 * value:+.2f}" for value in row - strong)
        print(f"  {name:<32}{shown}  {100 * row.mean():6.2f}  {100 * (row - strong).mean():+.2f} ({each})")


if __name__ == "__main__":
    main()
