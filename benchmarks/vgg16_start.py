"""Write the network that every figure on photographs starts from: a VGG16 that has seen photographs.

    python benchmarks/vgg16_start.py        -> data/vgg16-start.h5, for --weights and --model

Its first three blocks are those of ImageNet's VGG16, block4 and block5 were trained on Tiny ImageNet
(docs/better.md says how); both lie in the folder of real data beside the repository.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from measure import REAL

STORED = REAL / "vgg16_start.npz"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="data/vgg16-start.h5", help="default: %(default)s")
    args = parser.parse_args()
    if not STORED.is_file():
        sys.exit(f"There is no {STORED.name} beside the repository, so there is nothing to write.")
    import h5py
    from transfer.files import replace_with_checksum

    stored, out = np.load(STORED), Path(args.out)
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
    replace_with_checksum(part, out)
    print(f"{out}: blocks 1 to 3 of ImageNet's VGG16, block4 and block5 trained on Tiny ImageNet")


if __name__ == "__main__":
    main()
