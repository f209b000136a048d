"""What an interrupted training resumes from: RUN/resume/, whole at every moment.

state.json is written after each stage, and after epochs as often as MAX_CHECKPOINT_SHARE allows.
The files that it names are on disk before it, and removed after the next one. Epochs since then are
trained again, and come out the same."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common import all_layers, trained_weights
from transfer.files import read_json, sync, write_csv, write_json

RESUME_FOLDER = "resume"  # in a run's folder
STATE = ("stage", "stopped", "start", "last", "best", "random", "history")  # in state.json
MAX_CHECKPOINT_SHARE = 0.05  # of a training's time that may go into writing what it resumes from


@dataclass
class Checkpoint:
    """How far a run has come, and the weights to continue from."""

    folder: Path
    stage: int = 1  # the number of the stage under way
    stopped: bool = False  # early stopping has ended it
    start: str = None  # file of the whole network's weights at its start; None in the first stage
    last: str = None  # file of what its last written epoch ended with; None before there is one
    best: str = None  # file of the trained weights of its best epoch
    random: dict = field(default_factory=dict)  # `random_state` at that moment
    history: list = field(default_factory=list)  # rows of history.csv, of all stages
    write_ended: float = 0.0  # when the last writing ended, in seconds
    write_took: float = 0.0

    @classmethod
    def read(cls, run):
        """That of the run in the folder `run`, or that of a run that has not begun."""
        folder = Path(run) / RESUME_FOLDER
        folder.mkdir(exist_ok=True)
        state = read_json(folder / "state.json", {})
        return cls(folder, **state)

    def commit(self, model):
        """Write the state, then remove every file that is not part of it."""
        self.random = random_state(model)
        state = {key: getattr(self, key) for key in STATE}
        write_json(self.folder / "state.json", state)
        kept = {"state.json", self.start, self.last, self.best}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()

    def stage_rows(self):
        """The history of the stage under way."""
        return [row for row in self.history if row["stage"] == self.stage]

    def load_start(self, model):
        """Give the whole network the weights that the stage under way started from."""
        if self.start:
            assign(model.weights, self.read_arrays(self.start))
            set_random_state(model, self.random)

    def load_last(self, model):
        """Give a compiled `model` the weights and the optimizer of the last epoch that was written;
        returns the trained weights of the stage's best one. None where none is written."""
        if self.last is None:
            return None
        assign(epoch_variables(model), self.read_arrays(self.last))
        set_random_state(model, self.random)
        return self.read_arrays(self.best)

    def end_epoch(self, model, row, best):
        """Remember an epoch: the compiled `model` that trains, its row, the stage's best
        weights."""
        begun = time.monotonic()
        epoch = len(self.history) + 1
        self.history.append({"epoch": epoch, "stage": self.stage, **row})
        if begun - self.write_ended >= self.write_took / MAX_CHECKPOINT_SHARE:
            self.last = self.write_arrays(f"last-{epoch}.npz", epoch_variables(model))
            self.best = self.write_arrays(f"best-{epoch}.npz", best)
            self.stopped = model.stop_training
            self.commit(model)
            self.write_ended = time.monotonic()
            self.write_took = self.write_ended - begun
        write_csv(self.folder.parent / "history.csv", self.history)

    def end_stage(self, model):
        """Remember the weights of the whole `model`, which the next stage starts from."""
        self.start = self.write_arrays(f"stage-{self.stage}.npz", model.weights)
        self.last = None
        self.best = None
        self.stopped = False
        self.stage += 1
        self.commit(model)

    def write_arrays(self, name, values):
        """Write arrays or variables into the file `name`; returns the name once they are on
        disk."""
        np.savez(self.folder / name, *[np.asarray(value) for value in values])
        sync(self.folder / name)
        return name

    def read_arrays(self, name):
        """The arrays of a file that `write_arrays` wrote, in their order."""
        with np.load(self.folder / name) as arrays:
            return list(arrays.values())


def epoch_variables(model):
    """What an epoch changes: the weights of the layers that are not frozen, the optimizer's
    state."""
    return trained_weights(model) + model.optimizer.variables


def assign(variables, arrays):
    """Give each variable its array."""
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def random_state(model):
    """{layer: [seed, count]} of the layers that use random numbers, which no weight holds."""
    return {
        layer.name: np.asarray(layer.seed_generator.state).tolist()
        for layer in all_layers(model)
        if hasattr(layer, "seed_generator")
    }


def set_random_state(model, states):
    """Set what `random_state` gave."""
    for layer in all_layers(model):
        if layer.name in states:
            layer.seed_generator.state.assign(np.array(states[layer.name], "uint32"))
