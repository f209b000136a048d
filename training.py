"""Training in steps, as train_pretrained.py and finetune.py do it, and what a run records of it."""

import math
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from common import (
    add_compute_arguments,
    batches,
    convolutions,
    outputs_of,
    positive,
    positive_float,
    set_trainable,
    split_model,
    training_callbacks,
)
from distribution import current_share, watching_workers
from files import (
    BadInput,
    check_space,
    existing_folder,
    make_array,
    read_json,
    replace_with_checksum,
    sync,
    write_csv,
    write_json,
)
from recipes import LIGHT_AUGMENTATION, new_optimizer
from record import RESUME, percent, plot_curves, print_notice, print_table
from study import AUGMENTATION
from weights import random_state, set_random_state, weights_digest

CACHE_SHARE = 0.8  # of the free space that activations may take; weights and results need some
AUGMENTATIONS = {False: None, True: AUGMENTATION, "light": LIGHT_AUGMENTATION}
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
    of_recipe = kind == "fine-tuning"
    group.add_argument(
        "--optimizer",
        choices=("adam", "adamw", "rmsprop", "sgd"),
        default=None if of_recipe else "adam",
        help="default: adam" + ", or the recipe's" * of_recipe,
    )
    rate = {"type": positive_float, "metavar": "LR"}
    epochs = {"type": positive, "metavar": "N"}
    add_compute_arguments(group, workers=True)
    group.add_argument(
        "--cache-dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the activations of frozen blocks on disk; float16 takes half the space and differs in the "
        "fourth digit (default: %(default)s)",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write RUN/tensorboard too, for `tensorboard --logdir runs` (needs that package)",
    )
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


def check_tensorboard(args):
    """BadInput where --tensorboard is given and a package that it needs is not installed."""
    for package in ("tensorboard", "tensorflow") if args.tensorboard else ():
        if find_spec(package) is None:
            raise BadInput(f"--tensorboard needs the package {package}: pip install {package}")


# What an interrupted run goes on from: RUN/resume/state.json, written after each epoch and each step.
# It names the weights files that belong to it; those are written before it and removed after it, so
# that whatever it names is whole at any moment.


def read_state(folder):
    """What state.json in `folder` says, or the state of a run that has not begun."""
    state = {"step": 1, "stopped": False, "start": None, "last": None, "random": {}, "history": []}
    path = folder / "state.json"
    return state | (read_json(path) if path.exists() else {})


def train_steps(model, steps, dataset, images, args, run):
    """Train `model` step by step, each from the best weights of the one before.

    Writes to the folder `run` after every epoch history.csv and curves.png, after every step that
    beats the earlier ones model.keras: the run's best val_accuracy. Where `run` was interrupted it
    goes on after its last finished epoch. Returns the rows of history.csv.
    """
    folder = run / RESUME
    folder.mkdir(exist_ok=True)
    state = read_state(folder)
    history = state["history"]
    if state["start"]:
        model.load_weights(folder / state["start"])
        set_random_state(model, state["random"])

    def commit(**changes):
        state.update(changes, history=history)
        write_json(folder / "state.json", state)
        kept = {"state.json", state["start"], state["last"]}
        if rows := rows_of_step(history, state["step"]):
            kept.add(best_name(rows))
            write_csv(run / "history.csv", history)
            plot_curves(history, run / "curves.png", run.name, dataset.notice)
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()

    if history:
        commit()
        print(f"{len(history)} epochs are finished; going on after them.", flush=True)
    for number in range(state["step"], len(steps) + 1):
        step = steps[number - 1]
        print(f"Step {number} of {len(steps)}: {step['name']}", flush=True)
        about = {"step": number, "trained": step["name"], "augment": step["augment"]}
        about["learning_rate"] = step["learning_rate"]

        def on_epoch_end(trained, figures, about=about):
            epoch = len(history) + 1
            last = f"last-{epoch}.weights.h5"
            save_weights(trained, folder / last)
            history.append({"epoch": epoch, **about, **figures, "dataset": dataset.name})
            sync(folder / best_name(rows_of_step(history, about["step"])))
            random = state["random"] | random_state(trained)
            commit(last=last, stopped=trained.stop_training, random=random)

        logs = run / "tensorboard" / f"step-{number}" if args.tensorboard else None
        train_step(model, step, dataset, images, args, len(history), folder, on_epoch_end, state, logs)
        if best_epoch(history)["step"] == number:
            part = run / "part.keras"
            model.save(part)
            replace_with_checksum(part, run / "model.keras")
        start = f"step-{number}.weights.h5"
        save_weights(model, folder / start)
        commit(step=number + 1, stopped=False, start=start, last=None)
    return history


def save_weights(model, path):
    """Weights, and the optimizer's state where the model is compiled, to a new file."""
    model.save_weights(path)
    sync(path)


def best_name(rows):
    """The file of a step's best epoch so far, from the step's rows of history.csv."""
    return f"best-{rows.index(best_epoch(rows)) + 1}.weights.h5"


def rows_of_step(history, number):
    return [row for row in history if row["step"] == number]


def train_step(
    model, step, dataset, images, args, first_epoch, folder, on_epoch_end, state=None, tensorboard=None
):
    """One step of a strategy: set what trains, compile with a new optimizer, fit, restore the best.

    step: dict with name, blocks (those that train beside the head), augment (False, True for the study's
    or "light"), learning_rate, epochs, and perhaps what `recipes.ingredients` gives.
    images: {"train": ..., "val": ...} as from `load_images`. first_epoch: epochs that the run has behind
    it, so that shuffling and augmentation never repeat and never depend on an interruption. folder: for
    the weights of the best epochs. on_epoch_end(trained model, its FIGURES): the record. state: that of
    an interrupted run, which may have epochs of this step behind it. tensorboard: folder of its logs.
    Leaves in `model` the weights of the step's best val_accuracy.

    Where nothing is augmented, what the frozen blocks give is computed once and kept in args.cache: the
    same batches, the same result, without those blocks' cost.
    """
    import keras

    set_trainable(model, step["blocks"])
    labels = {split: dataset.splits[split].labels for split in ("train", "val")}
    trained, inputs, preprocess = model, images, True
    boundary = cache_boundary(step, args)
    if boundary:
        lower, upper = split_model(model, boundary)
        paths, shapes = activation_files(lower, boundary, images, args)
        if may_cache(boundary, paths, shapes, args):
            trained, preprocess = upper, False
            inputs = {
                split: make_array(
                    paths[split],
                    shapes[split],
                    args.cache_dtype,
                    outputs_of(lower, images[split], args.batch_size),
                    args.batch_size,
                    f"{boundary} of {split} images",
                )
                for split in labels
            }
    share = current_share()
    synchronise(trained, share.replicas > 1)
    smoothing, mixup = step.get("label_smoothing", 0), step.get("mixup", 0)
    classes = model.output_shape[-1] if smoothing or mixup else None
    train = batches(
        inputs["train"],
        labels["train"],
        args.batch_size,
        seed=args.seed,
        augment=AUGMENTATIONS[step["augment"]],
        preprocess=preprocess,
        epoch=first_epoch,
        classes=classes,
        mixup=mixup,
    )
    val = batches(inputs["val"], labels["val"], args.batch_size, preprocess=preprocess, classes=classes)
    average_weights = step.get("average_weights", False)
    trained.compile(
        optimizer=new_optimizer(
            *(args.optimizer, step["learning_rate"], len(train), step["epochs"]),
            schedule=step.get("schedule", "constant"),
            average_weights=average_weights,
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
        if classes
        else "sparse_categorical_crossentropy",
        # where batches are filled up, what fills them has no weight
        **{"weighted_metrics" if share.replicas > 1 else "metrics": ["accuracy"]},
    )
    done = rows_of_step(state["history"], state["step"]) if state else []
    rows = [{key: row[key] for key in FIGURES} for row in done]
    trained.optimizer.build(trained.trainable_variables)
    # the last and the best epoch's, the old beside the new; the whole model after the step, twice
    variables = [*trained.variables, *trained.optimizer.variables] * 4 + model.variables * 2
    check_space(folder, 4 * sum(math.prod(v.shape) for v in variables), "the weights of its epochs")
    if done:
        trained.load_weights(folder / state["last"])
        set_random_state(trained, state["random"])

    def record(_, logs):
        rows.append({key: float(logs[key]) for key in FIGURES})
        on_epoch_end(trained, rows[-1])

    if len(done) < step["epochs"] and not (state and state["stopped"]):
        with watching_workers(share):
            trained.fit(
                train,
                validation_data=val,
                initial_epoch=len(done),
                epochs=step["epochs"],
                shuffle=False,  # `batches` shuffles by seed and epoch; Keras would shuffle batches on top
                callbacks=training_callbacks(
                    folder / "best-{epoch}.weights.h5", record, done, average_weights, tensorboard
                ),
                verbose=1 if sys.stdout.isatty() else 2,
            )
    trained.load_weights(folder / best_name(rows))
    synchronise(trained, False)


def synchronise(model, over_devices):
    """Have batch normalisation take the statistics of the whole batch, over all devices.

    On JAX it always does; on TensorFlow each device would take those of its own part.
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = over_devices and keras.backend.backend() == "tensorflow"


def cache_boundary(step, args):
    """The last layer whose output never changes in a step, or None where nothing is to be kept."""
    mixed = step["augment"] or step.get("mixup")
    alone = current_share().workers == 1  # several would wait for each other's part of the array
    if mixed or not alone or args.cache == "none" or "block1" in step["blocks"]:
        return None
    frozen = 5 - len(step["blocks"])  # a strategy unfreezes the last blocks
    return f"block{frozen}_pool"


def activation_files(lower, layer, images, args):
    """({split: path}, {split: shape}) of the output of `lower` for every image, kept in args.cache.

    Keyed by the decoded images' own key (files, image size), the weights, the layer and the precision.
    """
    key = weights_digest(lower, convolutions(lower))[:16]
    kind = f"{args.precision}-{args.cache_dtype}"
    paths = {
        split: Path(args.cache) / f"{Path(array.filename).stem}-{layer}-{kind}-{key}.npy"
        for split, array in images.items()
    }
    return paths, {split: (len(array), *lower.output.shape[1:]) for split, array in images.items()}


def may_cache(layer, paths, shapes, args):
    """Whether there is room for the activations of `layer`; says how much they take before they do."""
    missing = [split for split, path in paths.items() if not path.exists()]
    if not missing:
        return True
    size = sum(math.prod(shapes[split]) for split in missing) * np.dtype(args.cache_dtype).itemsize
    free = shutil.disk_usage(existing_folder(paths[missing[0]])).free
    room = size < CACHE_SHARE * free
    print(
        f"The activations of {layer}, computed once, take {size / 1e9:.2f} GB of the {free / 1e9:.1f} GB "
        f"free in {args.cache}" + ("." if room else ": too much, so each epoch computes them again."),
        flush=True,
    )
    return room


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
    }
    write_json(run / "metrics.json", metrics)
    shutil.rmtree(run / RESUME)

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
