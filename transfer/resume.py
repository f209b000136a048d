"""What an interrupted run goes on from: the folder RUN/resume."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transfer.files import read_json, sync, write_json
from transfer.weights import random_state, set_random_state

FOLDER = "resume"


@dataclass
class Resume:
    """How far a run has come, and the weights to go on with.

    RUN/resume/state.json is written after each epoch and each step. It names the weights files that belong
    to it; those are written before it and removed after it, so that whatever it names is whole at any
    moment.
    """

    folder: Path
    step: int = 1  # the number of the step under way
    stopped: bool = False  # early stopping has ended it
    start: str = None  # weights of the whole network at its start; None before the first step has ended
    last: str = None  # weights and optimizer after its last epoch; None before its first one has ended
    random: dict = field(default_factory=dict)  # `weights.random_state`
    history: list = field(default_factory=list)  # rows of history.csv, of all steps

    @classmethod
    def read(cls, run):
        """That of the run in the folder `run`, or that of a run that has not begun."""
        folder = Path(run) / FOLDER
        folder.mkdir(exist_ok=True)
        state = folder / "state.json"
        return cls(folder, **(read_json(state) if state.exists() else {}))

    def commit(self):
        """Write the state, then remove the weights that it no longer names."""
        state = {key: value for key, value in vars(self).items() if key != "folder"}
        write_json(self.folder / "state.json", state)
        self.prune()

    def prune(self):
        """Remove every file that is not part of the state."""
        kept = {"state.json", self.start, self.last}
        if self.rows():
            kept.add(self.best_weights().name)
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def rows(self):
        """The history of the step under way."""
        return [row for row in self.history if row["step"] == self.step]

    def best_weights(self):
        """The file of the best epoch so far of the step under way; `checkpoints` writes it."""
        rows = self.rows()
        return self.folder / f"best-{rows.index(best_epoch(rows)) + 1}.weights.h5"

    def checkpoints(self):
        """Path, with {epoch}, for the weights of the step's best epochs."""
        return self.folder / "best-{epoch}.weights.h5"

    def load(self, model, name):
        """Give `model` the weights `name` (self.start, or self.last with the optimizer of a compiled model)
        and the random state that belongs to them; nothing where there are none yet."""
        if name:
            model.load_weights(self.folder / name)
            set_random_state(model, self.random)

    def end_epoch(self, model, row):
        """Remember an epoch: the compiled model, its row of the history."""
        epoch = len(self.history) + 1
        self.last = f"last-{epoch}.weights.h5"
        self.history.append({"epoch": epoch, "step": self.step, **row})
        best = self.best_weights()
        sync(best)
        if best_epoch(self.rows())["epoch"] < epoch:
            save_weights(model, self.folder / self.last)
        else:  # the checkpoint has just written the same
            link(best, self.folder / self.last)
        self.stopped = model.stop_training
        self.random |= random_state(model)
        self.commit()

    def end_step(self, model):
        """Remember the weights of the whole `model` that the next step starts from."""
        start = f"step-{self.step}.weights.h5"
        save_weights(model, self.folder / start)
        self.step, self.stopped, self.start, self.last = self.step + 1, False, start, None
        self.commit()


def save_weights(model, path):
    """Weights, and the optimizer's state where the model is compiled, to a new file."""
    model.save_weights(path)
    sync(path)


def link(path, other):
    """Give the file `path` the name `other` too; a copy where the disk has no links."""
    other.unlink(missing_ok=True)  # of an epoch that was interrupted here
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
        sync(other)


def best_epoch(history):
    """The first row of the best val_accuracy: the epoch whose weights are kept."""
    return max(history, key=lambda row: row["val_accuracy"])
