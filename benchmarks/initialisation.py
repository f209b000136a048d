"""Does plain VGG16 start to train from scratch? Keras' default kernels against ours, on the demo.

    python benchmarks/initialisation.py

For each initialisation: the standard deviation of three blocks' pooled activations before training, the
loss at the first step, and its mean over the last 10 of 40 steps of Adam (1e-4, batches of 32).
ln 29 = 3.367 is chance.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from transfer.dataset import demo_dataset, load_dataset

import common
from transfer import weights
from transfer.images import load_images
from transfer.screen import print_table

STEPS = 40


def main():
    keras = common.import_keras()
    dataset = load_images(load_dataset(demo_dataset()), ("train",), 48)
    train = dataset.splits["train"]
    source = common.Batches(train.images, train.labels, 32, seed=0)
    rows = []
    for name in ("Glorot uniform (Keras)", "He normal, pixels scaled (ours)"):
        keras.utils.set_random_seed(0)
        model = common.build_model(48, len(dataset.labels), "fc")
        if "ours" in name:
            weights.load_weights(model, "none", seed=0)
        probe = keras.Model(model.input, [model.get_layer(f"block{n}_pool").output for n in (1, 3, 5)])
        sizes = [float(np.asarray(a).std()) for a in probe.predict_on_batch(source[0][0])]
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
        losses = []
        for step in range(STEPS):
            losses.append(float(model.train_on_batch(*source[step % len(source)])))
        cells = [f"{value:.3g}" for value in sizes]
        rows.append((name, *cells, f"{losses[0]:.3f}", f"{np.mean(losses[-10:]):.3f}"))
    print_table(
        ("kernels", "block1", "block3", "block5", "first loss", f"loss, steps {STEPS - 9} to {STEPS}"), rows
    )


if __name__ == "__main__":
    main()
