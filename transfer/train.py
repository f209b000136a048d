"""Training in stages, and what an interrupted training resumes from."""

import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import numpy as np

import common
from transfer.activations import cache_activations
from transfer.console import percent, print_notice, print_table
from transfer.devices import accelerators, current_share
from transfer.files import read_json, sync, write_csv, write_json
from transfer.plots import plot_curves
from transfer.recipes import WARM_UP
from transfer.study import AUGMENTATION, FIGURES, plan_trainings
from transfer.weights import all_layers, random_state, set_random_state, weights_digest

LARGE_MODEL = (
    2_000_000  # weights from which an epoch takes seconds, and XLA is worth compiling a head for
)
STEPS_PER_EXECUTION = (
    50  # that TensorFlow trains on a GPU between two looks at the loss: about a second
)
RESUME_FOLDER = "resume"  # in a run's folder
MAX_CHECKPOINT_SHARE = (
    0.05  # share of a training's time that may go into writing what it resumes from
)


@dataclass(frozen=True)
class Stage:
    """One training of a strategy: all that decides it beside the data and the weights at its start."""

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
    frozen = {"learning_rate": args.learning_rate, "epochs": args.epochs}
    unfrozen = {"learning_rate": args.fine_tune_learning_rate, "epochs": args.fine_tune_epochs}
    keys = ("batch_size", "seed", "schedule", "balanced")
    shared = {key: getattr(args, key) for key in keys}
    return [
        Stage(name, blocks, augment=augment, **(unfrozen if blocks else frozen), **shared)
        for name, blocks, augment in plan_trainings(args.unfreeze, args.augment, args.final_augment)
    ]


def new_optimizer(stage, updates_per_epoch):
    """A new Keras optimizer for a Stage. schedule "cosine" rises linearly from 0 over WARM_UP of the updates
    and falls to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    settings = {"learning_rate": stage.learning_rate}
    if stage.schedule == "cosine":
        updates, schedules = max(1, updates_per_epoch * stage.epochs), keras.optimizers.schedules
        warm_up = round(WARM_UP * updates)
        start, target = (0.0, stage.learning_rate) if warm_up else (stage.learning_rate, None)
        rise = {"warmup_target": target, "warmup_steps": warm_up}
        settings["learning_rate"] = schedules.CosineDecay(start, max(1, updates - warm_up), **rise)
    return keras.optimizers.Adam(**settings)


def train_stages(model, stages, dataset, cache, run):
    """Train `model` stage by stage, each from the best weights of the one before. dataset: with the images of
    train and val. cache: folder for activations, or "none". Writes to the folder `run` history.csv after
    every epoch, curves.png after every stage, and model.keras after a stage that has the run's best
    val_accuracy. An interrupted `run` resumes after its last epoch. Returns the rows of history.csv."""
    resume = Checkpoint.read(run)
    resume.load(model, model, resume.start)
    if resume.history:
        print(f"Resuming after {len(resume.history)} finished epochs.", flush=True)
    for stage in stages[resume.stage - 1 :]:
        print(f"Stage {resume.stage} of {len(stages)}: {stage.name}", flush=True)
        train_stage(model, stage, dataset, cache, resume)
        if best_epoch(resume.history)["stage"] == resume.stage:
            part = run / "part.keras"
            model.save(part)
            sync(part)
            os.replace(part, run / "model.keras")
        write_csv(run / "history.csv", resume.history)
        plot_curves(resume.history, run / "curves.png", run.name, dataset.notice)
        resume.end_stage(model)
    return resume.history


def train_stage(model, stage, dataset, cache, resume):
    """One Stage: set what trains, compile with a new optimizer, fit, restore the best val_accuracy's
    weights. resume: where every epoch is remembered; it may have epochs of this stage behind it."""
    common.set_trainable(model, stage.blocks)
    trained, inputs = trained_part(model, stage, dataset, cache, resume)
    train, val = stage_batches(stage, trained, inputs, dataset)
    train.epoch, share, done = len(resume.history), train.share, resume.rows()
    momentum = 0.99  # Keras' own; it keeps most of the first averages, 0 and 1, in ten epochs of 100 images
    if stage.schedule == "cosine":  # of known length: 2% at most are left at its end
        momentum = min(momentum, 0.02 ** (1 / (len(train) * stage.epochs)))
    set_normalisation(model, momentum, share.whole_batches and share.replicas > 1)
    compile_stage(trained, stage, len(train), share)
    resume.load(model, trained, resume.last)
    stopping, checkpoint = common.training_callbacks(done, resume.read_best())
    if len(done) < stage.epochs and not resume.stopped:
        about = {"dataset": dataset.name, "trained": stage.name, "augmented": stage.augment}
        about["learning_rate"], in_a_terminal = stage.learning_rate, sys.stdout.isatty()

        def end_epoch(epoch, logs):
            row = about | {key: float(logs[key]) for key in FIGURES}
            resume.end_epoch(model, trained, row, checkpoint.weights)

        callbacks = [stopping, checkpoint, keras.callbacks.LambdaCallback(on_epoch_end=end_epoch)]
        callbacks += [] if in_a_terminal else [common.ProgressLines(train)]
        settings = {
            "verbose": 1 if in_a_terminal else 2,
            "initial_epoch": len(done),
            "epochs": stage.epochs,
        }
        settings["shuffle"] = False  # `Batches` shuffles by seed and epoch; Keras would on top
        trained.fit(train, validation_data=val, callbacks=callbacks, **settings)
    trained.set_weights(checkpoint.weights)
    set_normalisation(model)


def stage_batches(stage, trained, inputs, dataset):
    """The Batches of train and of val on which the model `trained` goes through a Stage."""
    share, labels = current_share(), {split: dataset.splits[split].labels for split in inputs}
    augment, still = (AUGMENTATION, {}) if stage.augment else (None, None)
    train = common.Batches(
        inputs["train"], labels["train"], stage.batch_size, stage.seed, augment, share
    )
    val = common.Batches(inputs["val"], labels["val"], stage.batch_size, augment=still, share=share)
    if stage.balanced:
        counts = np.bincount(labels["train"], minlength=len(dataset.labels))
        train.class_weights = (counts.sum() / len(counts) / counts).astype("float32")
    # The thread by which TensorFlow tunes its input often sleeps on at the end of an epoch, for up to a
    # minute. With workers Keras does without it, for 0.1 s a split, as long as a small head's epoch takes.
    if keras.backend.backend() == "tensorflow" and trained.count_params() > LARGE_MODEL:
        for batches in (train, val):  # Keras would queue ten batches, of up to 25 MB each
            batches.workers = batches.max_queue_size = 2
    return train, val


def trained_part(model, stage, dataset, cache, resume):
    """What a Stage trains, and on what: (model, {split: its inputs}). The part of `model` behind the frozen
    blocks, on their activations, computed once; or all of it, on the images, where those are augmented, the
    disk has no room (`resume` remembers, as that may change), or several processes train together."""
    images = {split: dataset.splits[split].images for split in ("train", "val")}
    frozen = 5 - len(stage.blocks)  # a strategy unfreezes the last blocks
    boundary = f"block{frozen}_pool" if frozen else None
    if common.has_multilayer_head(model):
        boundary = None if stage.blocks else "features"
    possible = boundary and not stage.augment and cache != "none" and current_share().processes == 1
    if possible and resume.activations is not False:
        lower, upper = common.split_model(model, boundary)
        kept = cache_activations(
            lower, boundary, images, stage.batch_size, cache, resume.activations
        )
        resume.activations = bool(kept)
        if kept:
            return upper, kept
    if stage.augment:
        return common.augmented_model(model), images
    whole = keras.Model(
        model.input, model.output
    )  # compiled itself, `model` would save its optimizer
    return whole, images


def compile_stage(model, stage, updates, share):
    """Compile `model` for a Stage of so many updates an epoch, with a new optimizer."""
    # TensorFlow's GPU idles at each look at the loss; over several devices its loop of stages fails
    alone = keras.backend.backend() == "tensorflow" and share.replicas == 1
    at_once = STEPS_PER_EXECUTION if alone and accelerators("tensorflow") else 1
    # and its CPU goes through Adam's state once for each operation, which XLA makes one
    dense = not any(isinstance(layer, keras.layers.Conv2D) for layer in all_layers(model))
    large = alone and dense and model.count_params() > LARGE_MODEL
    settings = {"steps_per_execution": at_once, "jit_compile": True if large else "auto"}
    # where batches are filled up for several devices, what fills them has no weight
    settings["weighted_metrics" if share.replicas > 1 else "metrics"] = ["accuracy"]
    model.compile(new_optimizer(stage, updates), "sparse_categorical_crossentropy", **settings)
    model.optimizer.build(model.trainable_variables)


def set_normalisation(model, momentum=0.99, over_devices=False):
    """Set up batch normalisation. over_devices: on TensorFlow take the whole batch's statistics, as JAX
    always does."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum, layer.synchronized = momentum, over_devices


@dataclass
class Checkpoint:
    """How far a run has come, and the weights to continue from. RUN/resume/state.json is written after each
    stage, and after epochs as often as MAX_CHECKPOINT_SHARE allows; the files that it names are written before it,
    and removed after it: always whole. Epochs since then are trained again, and come out the same."""

    folder: Path
    stage: int = 1  # the number of the stage under way
    stopped: bool = False  # early stopping has ended it
    activations: bool = (
        None  # whether the stage under way trains on stored ones; None before it has begun
    )
    start: str = (
        None  # weights of the whole network at its start; None before the first stage has ended
    )
    last: str = (
        None  # weights and optimizer after its last epoch; None before its first one is written
    )
    best: str = None  # the weights of its best epoch, in the order of Keras' get_weights
    random: dict = field(default_factory=dict)  # `network.random_state`
    history: list = field(default_factory=list)  # rows of history.csv, of all stages
    written: tuple = (0.0, 0.0)  # when the last writing ended, and how long it took, in seconds

    @classmethod
    def read(cls, run):
        """That of the run in the folder `run`, or that of a run that has not begun."""
        folder = Path(run) / RESUME_FOLDER
        folder.mkdir(exist_ok=True)
        state = folder / "state.json"
        return cls(folder, **(read_json(state) if state.exists() else {}))

    def commit(self, model):
        """Write the state, then remove every file that is not part of it."""
        self.random |= random_state(model)
        state = {
            key: value for key, value in vars(self).items() if key not in ("folder", "written")
        }
        write_json(self.folder / "state.json", state)
        kept = {"state.json", self.start, self.last, self.best}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def rows(self):
        """The history of the stage under way."""
        return [row for row in self.history if row["stage"] == self.stage]

    def read_best(self):
        """The weights of the best epoch so far of the stage under way; None where none is written."""
        if not self.best:
            return None
        with np.load(self.folder / self.best) as arrays:
            return list(arrays.values())

    def load(self, model, trained, name):
        """Give `trained`, `model` or a compiled part of it, the weights `name` (self.start or self.last),
        and `model` the random state that belongs to them; nothing where there are none yet."""
        if name:
            trained.load_weights(self.folder / name)
            set_random_state(model, self.random)

    def end_epoch(self, model, trained, row, best):
        """Remember an epoch: the network, the compiled part of it, its row, the stage's best weights."""
        epoch, (ended, took), begun = len(self.history) + 1, self.written, time.monotonic()
        self.history.append({"epoch": epoch, "stage": self.stage, **row})
        if begun - ended >= took / MAX_CHECKPOINT_SHARE:
            self.last, self.best = f"last-{epoch}.weights.h5", f"best-{epoch}.npz"
            trained.save_weights(self.folder / self.last)
            np.savez(self.folder / self.best, *best)
            for name in (self.last, self.best):
                sync(self.folder / name)
            self.stopped = trained.stop_training
            self.commit(model)
            self.written = time.monotonic(), time.monotonic() - begun
        write_csv(self.folder.parent / "history.csv", self.history)

    def end_stage(self, model):
        """Remember the weights of the whole `model` that the next stage starts from."""
        start = f"stage-{self.stage}.weights.h5"
        model.save_weights(self.folder / start)
        sync(self.folder / start)
        self.stage, self.stopped, self.start, self.last = self.stage + 1, False, start, None
        self.activations = self.best = None
        self.commit(model)


def best_epoch(history):
    """The first row of the best val_accuracy: the epoch whose weights are kept."""
    return max(history, key=lambda row: row["val_accuracy"])


def decisive(stages, model):
    """What beside flags and data decides a training's figures, for config.json."""
    digest = weights_digest(model, common.convolutions(model))
    return {"stages": [asdict(stage) for stage in stages], "weights_sha256": digest}


def print_metrics(run, metrics, study=()):
    """A finished run's figures, stage by stage, beside the study's rows (`fine_tuning_rows`)."""
    rows = []
    for row in metrics["stages"]:
        kept = ", kept as model.keras" if row["epoch"] == metrics["best_epoch"] else ""
        title = f"stage {row['stage']}, {row['trained']} (epoch {row['epoch']}{kept})"
        rows.append((title, *(row[key] for key in FIGURES)))
    for last, row in study:
        loss, accuracy, val_loss, val_accuracy = row["figures"]
        title = f"the study on MAMe: {row['row']} (stage {last})"
        rows.append((title, loss, accuracy / 100, val_loss, val_accuracy / 100))
    print()
    print_notice(metrics["notice"])
    rows = [(a, f"{b:.4f}", percent(c), f"{d:.4f}", percent(e)) for a, b, c, d, e in rows]
    print_table(("", *(key.replace("_", " ") for key in FIGURES)), rows)
    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")


def write_metrics(run, dataset, history):
    """Write metrics.json, which says that the run is finished; returns its content: the figures of the
    epoch that model.keras holds, and of each stage's best, as the study's rows may end in any stage."""
    best, numbers = best_epoch(history), sorted({row["stage"] for row in history})
    metrics = {
        "dataset": dataset.name,
        "notice": dataset.notice,
        **{key: best[key] for key in FIGURES},
    }
    metrics |= {"best_epoch": best["epoch"], "best_stage": best["stage"], "epochs": len(history)}
    metrics["stages"] = [
        best_epoch([row for row in history if row["stage"] == number]) for number in numbers
    ]
    write_json(run / "metrics.json", metrics)
    shutil.rmtree(run / RESUME_FOLDER)
    return metrics
