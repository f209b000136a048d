"""Write a .keras file to start from where ImageNet's VGG16 cannot be had: 'VGG19 blocks 1-3'.

    python benchmarks/vgg19_start.py        -> data/vgg19-blocks1-3.keras, and data/trashnet-50

Its first seven convolutions are those of an ImageNet-trained VGG19 (needs the folder of real photographs
beside the repository), the other six are drawn He-normal. He's rule asks for inputs of variance 1, so the
first drawn kernel is divided by the root mean square of what block3_pool gives on photographs.
data/trashnet-50 links 50 training photographs of each class, for training from scratch.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import PHOTOGRAPHS, load_vgg19, pictures

COUNTS = {"train": 50, "val": 20, "test": None}  # photographs a class
SMALL = Path("data/trashnet-50")


def link_photographs(folder):
    """Make `folder`/SPLIT/CLASS with links to the first COUNTS photographs of each class."""
    for split, count in COUNTS.items():
        for of_class in sorted((PHOTOGRAPHS / split).iterdir()):
            place = folder / split / of_class.name
            place.mkdir(parents=True, exist_ok=True)
            for path in sorted(of_class.iterdir())[:count]:
                if not (place / path.name).exists():
                    (place / path.name).symlink_to(path.resolve())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data/vgg19-blocks1-3.keras", help="default: %(default)s")
    args = parser.parse_args()
    if not PHOTOGRAPHS.is_dir():
        sys.exit("There are no real photographs beside the repository, so there are no filters either.")
    link_photographs(SMALL)
    from common import build_model, import_keras, outputs_of
    from transfer.files import replace_with_checksum
    from transfer.weights import load_weights

    keras = import_keras()
    model = build_model(64, 2, "gap")
    load_weights(model, "none", seed=0)
    load_vgg19(model)
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(64, folder, 64)
        block3 = keras.Model(model.input, model.get_layer("block3_pool").output)
        activations = outputs_of(block3, images, 64)(0, 64)
    size = float(np.sqrt(np.mean(activations**2)))
    kernel = model.get_layer("block4_conv1").kernel
    kernel.assign(kernel / size)
    model.save("part.keras")
    replace_with_checksum("part.keras", args.out)
    print(f"{args.out}: VGG19 blocks 1-3, then drawn kernels (block3_pool's root mean square: {size:.1f})")


if __name__ == "__main__":
    main()
