"""finetune.py with one ingredient that it does not have, to see on photographs whether it should.

    python benchmarks/ingredients.py momentum --recipe strong --data DIR ...    the flags are finetune.py's

Each ingredient changes one thing in the code as it is; `benchmarks/recipe.py` compares them. What gains
nothing stays here and out of the scripts; `larger`, which gains, is two ordinary commands in a row.
"""

import sys
from dataclasses import replace

import numpy as np
from measure import ROOT  # noqa: F401, puts the repository on the path

import finetune
from transfer import recipes, study, training

CUTMIX_SEED = 7  # beside the run's own, so that boxes and shuffling differ


def momentum(argv):
    """Batch normalisation with moving averages of momentum 0.9 instead of Keras' own 0.99."""
    build = training.build_model

    def changed(*given):
        model = build(*given)
        model.get_layer("batch_normalization").momentum = 0.9
        return model

    training.build_model = changed
    finetune.main(argv)


def dropout(argv):
    """Half of the head's features dropped in training."""
    study.HEADS["layers"] = (*study.HEADS["layers"], ("dropout", 0.5))
    finetune.main(argv)


def sgd(argv):
    """SGD with Nesterov's momentum while convolutions train, at 30 times Adam's learning rate."""

    def make(keras, with_rate):
        return keras.optimizers.SGD(with_rate(30)._learning_rate, momentum=0.9, nesterov=True)

    with_optimizer(make)
    finetune.main(argv)


def depth(argv):
    """Half the learning rate for each block further down, while convolutions train (Keras 3.15)."""

    def make(keras, with_rate):
        by_block = {f"block{number}.*": with_rate(0.5 ** (5 - number)) for number in range(1, 5)}
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(with_rate(1), by_block))

    with_optimizer(make)
    finetune.main(argv)


def with_optimizer(make):
    """Have unfrozen steps train by make(keras, a function from a factor of the learning rate to the usual
    optimizer)."""
    usual = recipes.new_optimizer

    def changed(step, updates):
        import keras

        if not step.blocks:
            return usual(step, updates)

        def with_rate(factor):
            return usual(replace(step, learning_rate=factor * step.learning_rate), updates)

        return make(keras, with_rate)

    training.new_optimizer = changed


def cutmix(argv):
    """CutMix (Yun et al. 2019) while convolutions train: one box a batch comes from another image each."""

    class Batches(training.Batches):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            one_hot = np.eye(self.labels.max() + 1, dtype="float32")[y]  # every split has every class
            if self.seed is None or x.dtype != np.uint8:  # validation, or activations of frozen blocks
                return x, one_hot
            rng = np.random.default_rng([CUTMIX_SEED, self.seed, self.epoch, index])
            height, width = x.shape[1:3]
            side = np.sqrt(1 - rng.beta(1, 1))
            top, left = rng.integers(0, height), rng.integers(0, width)
            rows = slice(max(0, int(top - side * height / 2)), int(top + side * height / 2))
            columns = slice(max(0, int(left - side * width / 2)), int(left + side * width / 2))
            other, mixed = rng.permutation(len(x)), x.copy()
            mixed[:, rows, columns] = x[other][:, rows, columns]
            kept = 1 - mixed[0, rows, columns, 0].size / (height * width)
            return mixed, kept * one_hot + (1 - kept) * one_hot[other]

    def compile_step(model, step, updates, share):
        model.compile(
            recipes.new_optimizer(step, updates), "categorical_crossentropy", metrics=["accuracy"]
        )
        model.optimizer.build(model.trainable_variables)

    training.Batches, training.compile_step = Batches, compile_step
    finetune.main(argv)


def larger(argv):
    """The last two epochs on images of half as many pixels again a side, with a head for these."""
    values = {flag: argv[argv.index(flag) + 1] for flag in ("--out", "--image-size", "--fine-tune-epochs")}
    small, epochs = values["--out"] + "-small", int(values["--fine-tune-epochs"])
    finetune.main([*argv, "--out", small, "--fine-tune-epochs", str(epochs - 2)])
    size = str(int(values["--image-size"]) * 3 // 2)
    finetune.main([*argv, "--weights", small, "--image-size", size, "--fine-tune-epochs", "2"])


INGREDIENTS = {function.__name__: function for function in (momentum, dropout, sgd, depth, cutmix, larger)}


if __name__ == "__main__":
    INGREDIENTS[sys.argv[1]](sys.argv[2:])
