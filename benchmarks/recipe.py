"""What each ingredient of a stronger recipe is worth, on real photographs, over three seeds.

    python benchmarks/vgg19_start.py
    python train_pretrained.py --data data/demo --weights data/vgg19-blocks1-3.keras --top gap \\
        --image-size 64 --epochs 6 --out runs/pretrained-64
    python benchmarks/recipe.py dense
    python benchmarks/recipe.py unfrozen

TrashNet (six materials; needs the folder of real photographs beside the repository); the network comes from
VGG19 blocks 1-3 and pretraining on the demo's textures. Two parts, as unfrozen training is slow on a CPU:

    dense       only the head trains, at 64 pixels: all candidates together, then one of them changed
    unfrozen    then block4 and block5 too, at 32 pixels: the strong recipe, then one candidate added

In each also the strong recipe and the study's; the flags of finetune.py are printed. The figures are the
accuracies on the test split of the epoch with the best validation accuracy, with mirror images (--flips)
and without; differences are to the same seed of the first row. On a CPU PyTorch trains these small pictures
faster than TensorFlow: KERAS_BACKEND=torch.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import PHOTOGRAPHS, ROOT, describe_machine

PARTS = {
    "dense": "--unfreeze none --image-size 64 --learning-rate 1e-3 --epochs 20",
    "unfrozen": "--unfreeze block4 --image-size 32 --learning-rate 1e-3 --epochs 15 --fine-tune-epochs 6"
    " --fine-tune-learning-rate 1e-4",
}
STRONG, STUDY = "--recipe strong", "--recipe study"
CANDIDATES = f"{STRONG} --head iii --optimizer adamw --label-smoothing 0.1 --average-weights"
# The flags of each row; the first one is what the others are compared with.
ROWS = {
    "dense": {
        "all candidates": CANDIDATES,
        "head i": f"{CANDIDATES} --head i",
        "head ii": f"{CANDIDATES} --head ii",
        "pooling instead of flattening": f"{CANDIDATES} --head pooled",
        "Adam instead of AdamW": f"{CANDIDATES} --optimizer adam",
        "constant learning rate": f"{CANDIDATES} --schedule constant",
        "no label smoothing": f"{CANDIDATES} --label-smoothing 0",
        "no averaged weights": f"{CANDIDATES} --no-average-weights",
        "the strong recipe": STRONG,
        "the study's recipe": STUDY,
    },
    "unfrozen": {
        "the strong recipe": STRONG,
        "light augmentation": f"{STRONG} --augment --augmentation light",
        "the study's recipe": STUDY,
    },
}


def test_accuracies(flags, activations):
    """{True: accuracy on the test split with mirror images, False: without} of one training with these
    flags of finetune.py.

    activations: {} at first, then what the frozen convolutions give for the test split.
    """
    import common
    import finetune
    from transfer import recipes, training
    from transfer.activations import Kept
    from transfer.dataset import load_dataset
    from transfer.images import load_images
    from transfer.weights import load_model, load_weights

    keras = common.import_keras()
    args = finetune.parse_args(flags.split())
    dataset = load_dataset(args.data)
    common.resolve_arguments(args, dataset)
    keras.backend.clear_session()
    keras.utils.set_random_seed(args.seed)
    model = common.build_model(args.image_size, len(dataset.labels), args.head, args.l2)
    load_weights(model, args.weights, args.seed)
    dataset = load_images(dataset, ("train", "val", "test"), args.image_size, args.cache)
    with tempfile.TemporaryDirectory() as folder:
        steps = recipes.plan_steps(args)
        training.train_steps(model, steps, dataset, Kept(args.cache), Path(folder))
        model = load_model(folder)
    lower, upper = common.split_model(model, "block5_pool")
    frozen = args.unfreeze == "none"
    if not frozen or not activations:
        array = dataset.splits["test"].images
        for flip in (False, True):
            view = np.ascontiguousarray(array[:, :, ::-1]) if flip else array
            produce = common.outputs_of(lower, view, 32)
            parts = [produce(n, min(n + 32, len(view))) for n in range(0, len(view), 32)]
            activations[flip] = np.concatenate(parts)
    plain, mirrored = (np.asarray(upper.predict(activations[flip], verbose=0)) for flip in (False, True))
    labels = dataset.splits["test"].labels
    shown = {True: (plain + mirrored) / 2, False: plain}
    return {flips: float(np.mean(p.argmax(axis=1) == labels)) for flips, p in shown.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--weights", default="runs/pretrained-64", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these rows alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="default: 0 1 2")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there is nothing to measure.")
    os.chdir(ROOT)
    data, rows = os.path.relpath(PHOTOGRAPHS), ROWS[args.part]
    print(describe_machine())
    print("TrashNet, 'VGG19 blocks 1-3', pretrained on the demo's textures\n", flush=True)
    figures, activations = {}, {}
    base = next(iter(rows))
    for seed in args.seeds:
        for name, variant in rows.items():
            if args.only and name not in (base, *args.only):
                continue
            flags = f"--data {data} --weights {args.weights} {PARTS[args.part]} {variant} --seed {seed}"
            stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # Keras' lines of every epoch
            found = test_accuracies(flags, activations)
            sys.stdout = stdout
            for flips, accuracy in found.items():
                figures.setdefault(name + ", mirror images" * flips, []).append(accuracy)
            both = " ".join(f"{100 * accuracy:.2f}" for accuracy in found.values())
            print(f"  {both}  finetune.py {flags}", flush=True)
    first = next(iter(figures))
    print(f"\ntest accuracy in percent, seeds {args.seeds}; mean; mean difference to {first} (each seed's)")
    for name, found in figures.items():
        row, difference = np.array(found), np.array(found) - np.array(figures[first])
        shown = " ".join(f"{100 * value:6.2f}" for value in row)
        each = " ".join(f"{100 * value:+.2f}" for value in difference)
        print(f"  {name:<46}{shown}  {100 * row.mean():6.2f}  {100 * difference.mean():+.2f} ({each})")


if __name__ == "__main__":
    main()
