"""Write ImageNet's own VGG16 convolutions, kept beside the repository, as an .h5 for --weights.

python benchmarks/vgg16_imagenet.py        -> data/vgg16-imagenet.h5
"""

import os
import sys
from pathlib import Path

import h5py
import numpy as np
from measure import REAL

from transfer.flags import script_parser

STORED = REAL / "vgg16_imagenet.npz"


def main():
    parser = script_parser(__doc__)
    parser.add_argument("--out", default="data/vgg16-imagenet.h5", help="default: %(default)s")
    args = parser.parse_args()
    if not STORED.is_file():
        sys.exit(f"There is no {STORED.name} beside the repository, so there is nothing to write.")
    stored = np.load(STORED)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name("part.h5")
    layers = list(dict.fromkeys(name.split("__")[0] for name in stored))
    with h5py.File(part, "w") as file:  # the layout of Keras' own VGG16 without its top
        file.attrs["layer_names"] = layers
        for layer in layers:
            group = file.create_group(layer)
            group.attrs["weight_names"] = ["kernel", "bias"]
            for name in group.attrs["weight_names"]:
                group[name] = stored[f"{layer}__{name}"].astype("float32")
    os.replace(part, out)
    print(f"{out}: the 13 convolutions of ImageNet's VGG16, without its dense layers")


if __name__ == "__main__":
    main()
