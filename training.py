"""Training in steps, as train_pretrained.py and finetune.py do it, and what a run records of it."""

import os
import sys
from pathlib import Path

import numpy as np

from common import (
    batches,
    convolutions,
    file_digest,
    fill_by_batches,
    positive,
    positive_float,
    set_trainable,
    split_model,
    training_callbacks,
    weights_digest,
)
from dataset import check_space
from record import percent, plot_curves, print_notice, print_table, write_csv, write_json

FIGURES = ("loss", "accuracy", "val_loss", "val_accuracy")


def add_training_arguments(parser, kind):
    """The flags of training; kind is "fine-tuning" (frozen and unfrozen steps) or "pretraining"."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--weights",
        metavar="W",
        help="of the convolutions: imagenet, none (drawn anew), or a path to an official Keras .h5, a "
        ".keras file or a run (default: the dataset's; MAMe imagenet, demo none)",
    )
    group.add_argument(
        "--optimizer",
        choices=("adam", "adamw", "rmsprop", "sgd"),
        default="adam",
        help="default: %(default)s",
    )
    rate = {"type": positive_float, "metavar": "LR"}
    epochs = {"type": positive, "metavar": "N"}
    if kind == "pretraining":
        group.add_argument("--learning-rate", dest="pretrain_learning_rate", help="MAMe: 1e-4", **rate)
        group.add_argument("--epochs", dest="pretrain_epochs", help="at most; MAMe: 100", **epochs)
        return
    group.add_argument("--learning-rate", help="while the convolutions are frozen; MAMe: 1e-4", **rate)
    group.add_argument("--fine-tune-learning-rate", help="of unfrozen steps; MAMe: 1e-5", **rate)
    group.add_argument("--epochs", help="of a frozen step, at most; MAMe: 100", **epochs)
    group.add_argument("--fine-tune-epochs", help="of an unfrozen step, at most; MAMe: 100", **epochs)
    group.add_argument(
        "--l2",
        type=positive_float,
        default=0.01,
        help="of the dense layers of heads ii and iii "
        "(default: %(default)s, with which the study's losses agree)",
    )


def train_steps(model, steps, dataset, images, args, run):
    """Train `model` step by step, each from the best weights of the one before.

    Writes to the folder `run` after every epoch history.csv and curves.png, after every step that
    beats the earlier ones model.keras: the run's best val_accuracy. Returns the rows of history.csv.
    """
    history = []
    checkpoint = run / "step.weights.h5"
    for number, step in enumerate(steps, 1):
        print(f"Step {number} of {len(steps)}: {step['name']}", flush=True)

        def on_epoch_end(epoch, logs, number=number, step=step):
            row = {"epoch": len(history) + 1, "step": number, "trained": step["name"]}
            row |= {"augment": step["augment"], "learning_rate": step["learning_rate"]}
            history.append(row | {key: float(logs[key]) for key in FIGURES} | {"dataset": dataset.name})
            write_csv(run / "history.csv", history)
            plot_curves(history, run / "curves.png", run.name, dataset.notice)

        train_step(model, step, dataset, images, args, len(history), checkpoint, on_epoch_end)
        if best_epoch(history)["step"] == number:
            part = run / "part.keras"
            model.save(part)
            os.replace(part, run / "model.keras")
        checkpoint.unlink()
    return history


def train_step(model, step, dataset, images, args, first_epoch, checkpoint, on_epoch_end):
    """One step of a strategy: set what trains, compile with a new optimizer, fit, restore the best.

    step: dict with name, blocks (those that train beside the head), augment, learning_rate, epochs.
    images: {"train": ..., "val": ...} as from `load_images`. first_epoch: epochs of earlier steps,
    so that shuffling and augmentation never repeat. on_epoch_end(epoch, logs): the record.
    Leaves in `model` the weights of the step's best val_accuracy.

    Where no convolution trains and nothing is augmented, the head is trained on block5_pool's
    activations, computed once: the same batches, the same result, without the convolutions' cost.
    """
    set_trainable(model, step["blocks"])
    labels = {split: dataset.splits[split].labels for split in ("train", "val")}
    trained, inputs, preprocess = model, images, True
    if not step["blocks"] and not step["augment"] and args.cache != "none":
        lower, trained = split_model(model, "block5_pool")
        preprocess = False
        inputs = {
            split: cached_activations(lower, "block5_pool", images[split], args, f"{split} images")
            for split in labels
        }
    train = batches(
        *(
            inputs["train"],
            labels["train"],
            args.batch_size,
            args.seed,
            step["augment"],
            preprocess,
        ),
        epoch=first_epoch,
    )
    val = batches(inputs["val"], labels["val"], args.batch_size, preprocess=preprocess)
    trained.compile(
        optimizer=new_optimizer(args.optimizer, step["learning_rate"]),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    trained.fit(
        train,
        validation_data=val,
        epochs=step["epochs"],
        shuffle=False,  # `batches` shuffles by seed and epoch; Keras would shuffle batches on top
        callbacks=training_callbacks(checkpoint, on_epoch_end),
        verbose=1 if sys.stdout.isatty() else 2,
    )
    trained.load_weights(checkpoint)


def new_optimizer(name, learning_rate):
    """A new Keras optimizer by its registered name."""
    import keras

    return keras.optimizers.get({"class_name": name, "config": {"learning_rate": learning_rate}})


def cached_activations(lower, layer, images, args, description):
    """Output of `lower` for every image, as a float32 memory map kept in args.cache.

    Keyed by the decoded images' own key (files, image size), the weights, and the layer.
    """
    key = weights_digest(lower, convolutions(lower))[:16]
    path = Path(args.cache) / f"{Path(images.filename).stem}-{layer}-{key}.npy"
    if not path.exists():
        shape = (len(images), *lower.output.shape[1:])
        check_space(path.parent, int(np.prod(shape)) * 4, f"the activations of {layer}")
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            array = np.lib.format.open_memmap(part, "w+", "float32", shape)
            fill_by_batches(array, lower, images, args.batch_size, f"{layer} of {description}")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return np.load(path, mmap_mode="r")


def best_epoch(history):
    """The first row of the best val_accuracy: the epoch whose weights are kept."""
    return max(history, key=lambda row: row["val_accuracy"])


def finish_training(run, dataset, history, study):
    """Write metrics.json of a finished run and print its figures beside the study's rows.

    The run's figures are those of the epoch that model.keras holds: the best val_accuracy of all
    steps. Each step's own best epoch is listed with it, as the study's rows may end in any step.
    study: rows of study.FINE_TUNING_ROWS.
    """
    best = best_epoch(history)
    numbers = sorted({row["step"] for row in history})
    steps = [best_epoch([row for row in history if row["step"] == number]) for number in numbers]
    metrics = {
        "dataset": dataset.name,
        "notice": dataset.notice,
        **{key: best[key] for key in FIGURES},
        "best_epoch": best["epoch"],
        "best_step": best["step"],
        "epochs": len(history),
        "steps": steps,
        "model_sha256": file_digest(run / "model.keras"),
    }
    write_json(run / "metrics.json", metrics)

    print()
    print_notice(dataset.notice)
    header = ("", *(key.replace("_", " ") for key in FIGURES))
    rows = []
    for row in steps:
        kept = ", kept as model.keras" if row["epoch"] == best["epoch"] else ""
        title = f"step {row['step']}, {row['trained']} (epoch {row['epoch']}{kept})"
        rows.append((title, *format_figures([row[key] for key in FIGURES])))
    for row in study:
        loss, accuracy, val_loss, val_accuracy = row["figures"]
        figures = format_figures((loss, accuracy / 100, val_loss, val_accuracy / 100))
        rows.append((f"the study on MAMe: {row['row']}", *figures))
    print_table(header, rows)
    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")


def format_figures(figures):
    """Loss, accuracy, val loss, val accuracy (fractions) as the study prints them."""
    loss, accuracy, val_loss, val_accuracy = figures
    return f"{loss:.4f}", percent(accuracy), f"{val_loss:.4f}", percent(val_accuracy)
