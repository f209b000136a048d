"""What Keras' `fit` calls: the feed of batches, and the callbacks. Imports Keras, so import it late."""

import os
import time

import keras

from transfer.files import write_csv
from transfer.images import ImagesOnDemand
from transfer.plots import plot_curves
from transfer.screen import progress
from transfer.study import FIGURES

DRAW_EVERY = 20  # seconds between two drawings of a run's curves; an epoch may take less than one drawing


class Feed(keras.utils.PyDataset):
    """`common.Batches` as Keras takes them.

    Rows of an array take one thread less time than a device needs for them, and with one worker alone
    TensorFlow fetches ahead and no epoch waits for Keras' own queue to end (benchmarks/feeding.py). Files
    that are decoded anew for each batch take several.
    """

    def __init__(self, batches):
        on_demand = isinstance(batches.inputs, ImagesOnDemand)
        super().__init__(workers=min(4, os.cpu_count()) if on_demand else 1)
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]

    def on_epoch_end(self):
        self.batches.epoch += 1


class ResumedEarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping that is shown the figures of the epochs in `done`, which lie behind it, again."""

    done = ()

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for epoch, figures in enumerate(self.done):
            self.on_epoch_end(epoch, figures)


class RecordEpoch(keras.callbacks.Callback):
    """Has the run remember each epoch; to be called after the checkpoint. about: more of its row."""

    def __init__(self, resume, about):
        super().__init__()
        self.resume, self.about = resume, about

    def on_epoch_end(self, epoch, logs=None):
        row = self.about | {key: float(logs[key]) for key in FIGURES}
        self.resume.end_epoch(self.model, row)


class ShowHistory(keras.callbacks.Callback):
    """Writes history.csv of a run after each epoch, and curves.png now and then and at the end."""

    def __init__(self, run, resume, notice):
        super().__init__()
        self.run, self.resume, self.notice = run, resume, notice
        self.drawn = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        write_csv(self.run / "history.csv", self.resume.history)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self.draw()

    def draw(self):
        plot_curves(self.resume.history, self.run / "curves.png", self.run.name, self.notice)
        self.drawn = time.monotonic()


class ProgressLines(keras.callbacks.Callback):
    """Within an epoch, a line now and then where the output is no terminal: images a second, time left."""

    async_safe = True  # Keras need not wait for a batch's loss to call it

    def __init__(self, batches):
        super().__init__()
        self.images, self.batch_size = len(batches.labels), batches.batch_size

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = progress(None, f"epoch {epoch + 1}", self.images, " images")

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update(max(0, min((batch + 1) * self.batch_size, self.images) - self.bar.n))

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()
