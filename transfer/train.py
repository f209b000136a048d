"""Training stage by stage, each stage by Keras' own fit."""

import os
import shutil
import sys
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np

import common
from transfer.activations import cache_activations
from transfer.backend import keras
from transfer.checkpoint import Checkpoint
from transfer.devices import current_share
from transfer.files import sync, write_csv, write_json
from transfer.plots import plot_curves
from transfer.recipes import WARM_UP
from transfer.study import AUGMENTATION, FIGURES, plan_trainings

LARGE_MODEL = 2_000_000  # weights from which an epoch takes seconds


@dataclass(frozen=True)
class Stage:
    """One training of a strategy: all that decides it beside the data and the weights at its
    start."""

    name: str  # as the study calls what trains
    blocks: tuple  # of convolutions that train beside the head
    learning_rate: float
    epochs: int  # at most
    batch_size: int
    seed: int
    augment: bool = False
    schedule: str = "constant"  # of the learning rate, or "cosine"
    balanced: bool = False  # each class counts alike in the loss


def plan_stages(args):
    """The stages of finetune.py's flags."""
    stages = []
    for name, blocks, augment in plan_trainings(vars(args)):
        stage = Stage(
            name=name,
            blocks=blocks,
            learning_rate=args.fine_tune_learning_rate if blocks else args.learning_rate,
            epochs=args.fine_tune_epochs if blocks else args.epochs,
            batch_size=args.batch_size,
            seed=args.seed,
            augment=augment,
            schedule=args.schedule,
            balanced=args.balanced,
        )
        stages.append(stage)
    return stages


def train_stages(model, stages, dataset, cache, run):
    """Train `model` stage by stage, each from the best weights of the one before. dataset: with the
    images of train and val. cache: folder for activations, or "none". Writes to the folder `run`
    history.csv after every epoch, curves.png after every stage, and model.keras after a stage that
    has the run's best val_accuracy. An interrupted `run` resumes after its last written epoch.
    Returns the rows of history.csv."""
    checkpoint = Checkpoint.read(run)
    checkpoint.load_start(model)
    if checkpoint.history:
        print(f"Resuming after {len(checkpoint.history)} finished epochs.", flush=True)
    for stage in stages[checkpoint.stage - 1 :]:
        print(f"Stage {checkpoint.stage} of {len(stages)}: {stage.name}", flush=True)
        train_stage(model, stage, dataset, cache, checkpoint)
        if best_epoch(checkpoint.history)["stage"] == checkpoint.stage:
            save_model(model, run / "model.keras")
        write_csv(run / "history.csv", checkpoint.history)
        plot_curves(checkpoint.history, run / "curves.png", run.name, dataset.notice)
        checkpoint.end_stage(model)
    write_metrics(run, dataset, checkpoint.history)  # says that the run is finished
    shutil.rmtree(checkpoint.folder)
    return checkpoint.history


def train_stage(model, stage, dataset, cache, checkpoint):
    """One Stage: set what trains, compile with a new optimizer, fit, and restore the weights of the
    best val_accuracy. checkpoint: where every epoch is remembered; it may have some of this
    stage."""
    # what trains, and on what
    common.set_trainable(model, stage.blocks)
    trained, inputs = trained_part(model, stage, dataset, cache)
    train, val = stage_batches(stage, trained, inputs, dataset)
    train.epoch = len(checkpoint.history)  # shuffling goes on where the history ends
    set_normalisation(model, normalisation_momentum(stage, len(train)))
    compile_stage(trained, stage, len(train), train.share)

    # where an interrupted stage goes on, with the weights of its best epoch
    done = checkpoint.stage_rows()
    stopping, best = common.training_callbacks(done, checkpoint.load_last(trained))
    if len(done) < stage.epochs and not checkpoint.stopped:
        callbacks = [stopping, best, RecordEpochs(checkpoint, stage, dataset, best)]
        in_a_terminal = sys.stdout.isatty()
        if not in_a_terminal:
            callbacks.append(common.ProgressLines(train))
        trained.fit(
            train,
            validation_data=val,
            initial_epoch=len(done),
            epochs=stage.epochs,
            callbacks=callbacks,
            shuffle=False,  # `Batches` shuffles by seed and epoch; Keras would on top
            verbose=1 if in_a_terminal else 2,
        )

    # what the stage ends with
    for weight, array in zip(common.trained_weights(trained), best.weights):
        weight.assign(array)
    set_normalisation(model)


class RecordEpochs(keras.callbacks.Callback):
    """Has the checkpoint remember each epoch, after early stopping and `best` (a
    common.BestWeights) have seen it."""

    def __init__(self, checkpoint, stage, dataset, best):
        super().__init__()
        self.checkpoint = checkpoint
        self.best = best
        self.about = {
            "dataset": dataset.name,
            "trained": stage.name,
            "augmented": stage.augment,
            "learning_rate": stage.learning_rate,
        }

    def on_epoch_end(self, epoch, logs=None):
        figures = {key: float(logs[key]) for key in FIGURES}
        self.checkpoint.end_epoch(self.model, {**self.about, **figures}, self.best.weights)


def stage_batches(stage, trained, inputs, dataset):
    """The Batches of train and of val on which the model `trained` goes through a Stage."""
    share = current_share()
    labels = {split: dataset.splits[split].labels for split in inputs}
    moved = AUGMENTATION if stage.augment else None
    still = {} if stage.augment else None  # val in the form of train, each image in its place
    size = stage.batch_size
    train = common.Batches(inputs["train"], labels["train"], size, stage.seed, moved, share)
    val = common.Batches(inputs["val"], labels["val"], size, augment=still, share=share)
    if stage.balanced:
        counts = np.bincount(labels["train"], minlength=len(dataset.labels))
        train.class_weights = (counts.sum() / len(counts) / counts).astype("float32")

    # The thread by which TensorFlow tunes its input often sleeps on at the end of an epoch, for up
    # to a minute. With workers Keras does without it, for 0.1 s a split, as long as a small head's
    # epoch takes. Keras would queue ten batches, of up to 25 MB each.
    if keras.backend.backend() == "tensorflow" and trained.count_params() > LARGE_MODEL:
        for batches in (train, val):
            batches.workers = 2
            batches.max_queue_size = 2
    return train, val


def frozen_boundary(model, stage):
    """The last layer that a Stage leaves as it is; None where every layer trains."""
    if common.has_multilayer_head(model):  # the head takes something from every block
        return None if stage.blocks else "features"
    frozen = 5 - len(stage.blocks)  # a strategy unfreezes the last blocks
    return f"block{frozen}_pool" if frozen else None


def trained_part(model, stage, dataset, cache):
    """What a Stage trains, and on what: (model, {split: its inputs}). The part of `model` behind
    the frozen blocks, on their activations, computed once; or all of it, on the images, where those
    are augmented, the disk has no room, or several processes train together."""
    images = {split: dataset.splits[split].images for split in ("train", "val")}
    if stage.augment:
        return common.augmented_model(model), images
    boundary = frozen_boundary(model, stage)
    if boundary and cache != "none" and current_share().processes == 1:
        lower, upper = common.split_model(model, boundary)
        cached = cache_activations(lower, boundary, images, stage.batch_size, cache)
        if cached:
            return upper, cached
    # a model of its own: compiled itself, `model` would save its optimizer
    return keras.Model(model.input, model.output), images


def new_optimizer(stage, updates_per_epoch):
    """A new Keras optimizer for a Stage. schedule "cosine" rises linearly from 0 over WARM_UP of
    the updates and falls to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    rate = stage.learning_rate
    if stage.schedule == "cosine":
        updates = updates_per_epoch * stage.epochs
        warm_up = round(WARM_UP * updates)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, updates - warm_up, warmup_target=rate, warmup_steps=warm_up
        )
    on_tensorflow = keras.backend.backend() == "tensorflow"
    return FusedAdam(rate) if on_tensorflow else keras.optimizers.Adam(rate)


class FusedAdam(keras.optimizers.Adam):
    """Adam by TensorFlow's own kernel, which goes through a variable and its state once, and not
    once for each operation of the formula."""

    def update_step(self, gradient, variable, learning_rate):
        import tensorflow

        index = self._get_variable_index(variable)
        updates = keras.ops.cast(self.iterations + 1, "float32")
        tensorflow.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].handle,
            v=self._velocities[index].handle,
            beta1_power=self.beta_1**updates,
            beta2_power=self.beta_2**updates,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


def compile_stage(model, stage, updates, share):
    """Compile `model` for a Stage of so many updates an epoch, with a new optimizer."""
    # where batches are filled up for several devices, what fills them has no weight
    metrics = "weighted_metrics" if share.replicas > 1 else "metrics"
    model.compile(
        new_optimizer(stage, updates), "sparse_categorical_crossentropy", **{metrics: ["accuracy"]}
    )
    model.optimizer.build(model.trainable_variables)


def normalisation_momentum(stage, updates):
    """Batch normalisation's momentum in a Stage of so many updates an epoch. Keras' own keeps most
    of the first averages, 0 and 1, in ten epochs of 100 images; a stage of known length keeps
    2%."""
    if stage.schedule == "constant":
        return 0.99
    return min(0.99, 0.02 ** (1 / (updates * stage.epochs)))


def set_normalisation(model, momentum=0.99):
    """Set the momentum of batch normalisation; the default is Keras' own."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum


def save_model(model, path):
    """Save a network as a .keras file, whole or not at all."""
    part = path.with_name("part.keras")
    model.save(part)
    sync(part)
    os.replace(part, path)


def best_epoch(history):
    """The first row of the best val_accuracy: the epoch whose weights are kept."""
    return max(history, key=lambda row: row["val_accuracy"])


def write_metrics(run, dataset, history):
    """Write metrics.json: the figures of the epoch that model.keras holds, and of each stage's
    best, as the study's rows may end in any stage."""
    best = best_epoch(history)
    metrics = {
        "dataset": dataset.name,
        "notice": dataset.notice,
        **{key: best[key] for key in FIGURES},
        "best_epoch": best["epoch"],
        "best_stage": best["stage"],
        "epochs": len(history),
        "stages": [best_epoch(rows) for _, rows in groupby(history, itemgetter("stage"))],
    }
    write_json(run / "metrics.json", metrics)
