"""A dataset of MAMe's size and number of classes from other photographs, to time commands on.

    python benchmarks/mame_size.py --photographs DIR          -> data/mame-size
    time python finetune.py --data data/mame-size --unfreeze stepped --epochs 10 --fine-tune-epochs 5

DIR/SPLIT/CLASS/* with 29 classes or more: neighbours in the order of their names are put together into 29
groups, and each is filled up to MAMe's number of images a class in train and val (540 in test), from the
beginning again where it has too few. Only links are made. Accuracies on it are of no interest.
"""

import argparse
from itertools import cycle, islice
from pathlib import Path

import numpy as np

CLASSES = 29
COUNTS = {"train": 700, "val": 50, "test": 540}  # MAMe's test split has 95 to 700, 540 on average


def link_groups(photographs, out):
    """Make out/SPLIT/GROUP with links to as many photographs as MAMe has."""
    for split, count in COUNTS.items():
        source = photographs / split
        if not source.is_dir():
            source = photographs / "val"  # of photographs that have no test split
        groups = np.array_split(sorted(source.iterdir()), CLASSES)
        for number, classes in enumerate(groups):
            folder = out / split / f"{number:02d}-{classes[0].name}"
            folder.mkdir(parents=True)
            # one of each class in turn, so that all have a share in a group that is not used up
            by_class = [sorted(path.iterdir()) for path in classes]
            files = [f[k] for k in range(max(map(len, by_class))) for f in by_class if k < len(f)]
            for row, path in enumerate(islice(cycle(files), count)):
                (folder / f"{row:04d}-{path.name}").symlink_to(path.resolve())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, default=Path("data/mame-size"), help="default: %(default)s")
    args = parser.parse_args()
    link_groups(args.photographs, args.out)
    print(f"{args.out}: {CLASSES} classes of {COUNTS} images each, links to {args.photographs}")


if __name__ == "__main__":
    main()
