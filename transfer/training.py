"""Training in steps, as train_pretrained.py and finetune.py do it, and what a run records of it."""

import math
import shutil
import sys
from dataclasses import asdict

from common import Batches, build_model, convolutions, import_keras, set_trainable, training_callbacks
from transfer.activations import Kept, trained_part
from transfer.devices import current_share, distributed, steps_at_once, watching_workers
from transfer.files import check_space, replace_with_checksum, write_json
from transfer.images import load_images
from transfer.recipes import new_optimizer
from transfer.resume import FOLDER, Resume, best_epoch
from transfer.runs import describe_run, start_run
from transfer.screen import percent, print_configuration, print_notice, print_table
from transfer.study import AUGMENTATION, FIGURES
from transfer.weights import layers_of, load_weights, weights_digest, with_precision


def run_training(args, dataset, head, steps, name, study=()):
    """What train_pretrained.py and finetune.py do with their flags: build, load, train, record, report.

    head: of study.HEADS. name: of the run. study: `recipes.fine_tuning_rows`, to show beside it.
    Returns the run's folder.
    """
    keras = import_keras()
    with distributed(args.devices, args.workers, args.batch_size) as (share, computes_on):
        keras.utils.set_random_seed(args.seed)
        print_configuration(args, dataset, computes_on)
        classes, l2 = len(dataset.labels), getattr(args, "l2", 0)
        model = build_model(args.image_size, classes, head, l2, f"vgg16_{dataset.name}")
        load_weights(model, args.weights, args.seed)
        model = with_precision(model, args.precision)
        dataset = load_images(dataset, ("train", "val"), args.image_size, args.cache, args.skip_unreadable)
        decisive = {
            "steps": [asdict(step) for step in steps],
            "weights_sha256": weights_digest(model, convolutions(model)),
        }
        config = describe_run(args, dataset, **decisive)
        with start_run(config, name, args.resume or args.out, share) as run:
            history = train_steps(model, steps, dataset, Kept(args.cache, args.cache_dtype), run)
            metrics = write_metrics(run, dataset, history)
            print_metrics(run, metrics, study)
        return run


def train_steps(model, steps, dataset, kept, run):
    """Train `model` step by step, each from the best weights of the one before.

    dataset: with the images of train and val. kept: `activations.Kept`. Writes to the folder `run` after
    every epoch history.csv and curves.png, after every step that beats the earlier ones model.keras: the
    run's best val_accuracy. Where `run` was interrupted it goes on after its last finished epoch. Returns
    the rows of history.csv.
    """
    from transfer.fitting import ShowHistory

    resume = Resume.read(run)
    resume.load(model, resume.start)
    show = ShowHistory(run, resume, dataset.notice)
    if resume.history:
        resume.prune()
        show.on_epoch_end(len(resume.history))
        print(f"{len(resume.history)} epochs are finished; going on after them.", flush=True)
    for step in steps[resume.step - 1 :]:
        print(f"Step {resume.step} of {len(steps)}: {step.name}", flush=True)
        train_step(model, step, dataset, kept, resume, [show])
        if best_epoch(resume.history)["step"] == resume.step:
            part = run / "part.keras"
            model.save(part)
            replace_with_checksum(part, run / "model.keras")
        resume.end_step(model)
    show.draw()
    return resume.history


def train_step(model, step, dataset, kept, resume, callbacks=()):
    """One Step: set what trains, compile with a new optimizer, fit, restore the best.

    dataset, kept: as in `train_steps`. resume: where every epoch is remembered; it may have epochs of this
    step behind it. Shuffling and augmentation never repeat over the steps of a run and never depend on an
    interruption. callbacks: more of them, called last. Leaves in `model` the weights of the step's best
    val_accuracy.

    Where nothing is augmented, what the frozen blocks give is computed once: the same batches, the same
    result, without those blocks' cost.
    """
    from transfer.fitting import Feed, ProgressLines, RecordEpoch

    set_trainable(model, step.blocks)
    trained, inputs = trained_part(model, step, dataset, kept)
    share, done = current_share(), resume.rows()
    synchronise(trained, share.replicas > 1)
    labels = {split: dataset.splits[split].labels for split in inputs}
    augment, epoch = AUGMENTATION if step.augment else None, len(resume.history)
    train = Batches(inputs["train"], labels["train"], step.batch_size, step.seed, epoch, augment)
    val = Batches(inputs["val"], labels["val"], step.batch_size, augment={} if augment else None)
    compile_step(trained, step, len(train), share)
    check_room(resume.folder, trained, model)
    resume.load(trained, resume.last)
    if len(done) < step.epochs and not resume.stopped:
        row = {"dataset": dataset.name, "trained": step.name, "augmented": step.augment}
        row["learning_rate"] = step.learning_rate
        in_a_terminal = sys.stdout.isatty()
        with watching_workers(share):
            trained.fit(
                Feed(train),
                validation_data=Feed(val),
                initial_epoch=len(done),
                epochs=step.epochs,
                shuffle=False,  # `Batches` shuffles by seed and epoch; Keras would shuffle batches on top
                callbacks=[
                    *training_callbacks(resume.checkpoints(), done),
                    *(() if in_a_terminal else (ProgressLines(train),)),
                    RecordEpoch(resume, row),
                    *callbacks,
                ],
                verbose=1 if in_a_terminal else 2,
            )
    trained.load_weights(resume.best_weights())
    synchronise(trained, False)


def compile_step(model, step, updates, share):
    """Compile `model` for a Step of so many updates an epoch, with a new optimizer."""
    loss = "sparse_categorical_crossentropy"
    # where batches are filled up for several devices, what fills them has no weight
    metrics = {"weighted_metrics" if share.replicas > 1 else "metrics": ["accuracy"]}
    model.compile(new_optimizer(step, updates), loss, steps_per_execution=steps_at_once(share), **metrics)
    model.optimizer.build(model.trainable_variables)


def check_room(folder, trained, model):
    """BadInput where `folder` has no room for what a step of training writes there."""
    # the last and the best epoch's weights, the old beside the new; the whole model after the step, twice
    variables = [*trained.variables, *trained.optimizer.variables] * 4 + model.variables * 2
    space = 4 * sum(math.prod(variable.shape) for variable in variables)
    check_space(folder, space, "the weights of its epochs")


def synchronise(model, over_devices):
    """Have batch normalisation take the statistics of the whole batch, over all devices.

    On JAX it always does; on TensorFlow each device would take those of its own part.
    """
    import keras

    for layer in layers_of(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = over_devices and keras.backend.backend() == "tensorflow"


# The record ------------------------------------------------------------------------------


def write_metrics(run, dataset, history):
    """Write metrics.json, which says that the run is finished; returns its content.

    The run's figures are those of the epoch that model.keras holds: the best val_accuracy of all
    steps. Each step's own best epoch is listed with it, as the study's rows may end in any step.
    """
    best = best_epoch(history)
    numbers = sorted({row["step"] for row in history})
    metrics = {
        "dataset": dataset.name,
        "notice": dataset.notice,
        **{key: best[key] for key in FIGURES},
        "best_epoch": best["epoch"],
        "best_step": best["step"],
        "epochs": len(history),
        "steps": [best_epoch([row for row in history if row["step"] == number]) for number in numbers],
    }
    write_json(run / "metrics.json", metrics)
    shutil.rmtree(run / FOLDER)
    return metrics


def print_metrics(run, metrics, study):
    """A finished run's figures, step by step, beside the study's rows."""
    print()
    print_notice(metrics["notice"])
    header = ("", *(key.replace("_", " ") for key in FIGURES))
    rows = []
    for row in metrics["steps"]:
        kept = ", kept as model.keras" if row["epoch"] == metrics["best_epoch"] else ""
        title = f"step {row['step']}, {row['trained']} (epoch {row['epoch']}{kept})"
        rows.append((title, *format_figures(*(row[key] for key in FIGURES))))
    for last, row in study:
        loss, accuracy, val_loss, val_accuracy = row["figures"]
        figures = format_figures(loss, accuracy / 100, val_loss, val_accuracy / 100)
        rows.append((f"the study on MAMe: {row['row']} (step {last})", *figures))
    print_table(header, rows)
    print(f"\nResults: {run}/ (metrics.json, history.csv, curves.png, model.keras)")


def format_figures(loss, accuracy, val_loss, val_accuracy):
    """As the study prints them; accuracies are fractions."""
    return f"{loss:.4f}", percent(accuracy), f"{val_loss:.4f}", percent(val_accuracy)
