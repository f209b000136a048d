"""What the scripts share: flags, the batch generator, augmentation, VGG16 and its heads,
the callbacks of training, and layer-wise pooling.

Keras is imported inside the functions that need it, so that `--help` answers at once.
"""

import argparse
import functools
import logging
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from transfer.devices import Share, current_share, feeds_whole_batches, on_own_device
from transfer.files import read_json
from transfer.screen import BadInput
from transfer.study import AUGMENTATION, EARLY_STOPPING_PATIENCE, EMBEDDING_THRESHOLDS, HEADS

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Flags -----------------------------------------------------------------------------------


def script_parser(description):
    """An argparse parser for a script with this docstring."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_shared_arguments(parser, resume=False):
    """The flags that mean the same in every script; None stands for the dataset's own default.

    resume: add --resume, for the scripts whose runs are resumed (see `parse_arguments`).
    """
    group = parser.add_argument_group("shared by all scripts")
    group.add_argument(
        "--data",
        metavar="DIR",
        help="dataset in MAMe's layout (default: data/mame; the demo dataset where that is absent)",
    )
    group.add_argument("--seed", type=natural, default=0, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--image-size", type=natural, metavar="N", help="pixels a side (default: the dataset's; MAMe 224)"
    )
    group.add_argument("--batch-size", type=positive, metavar="N", help="default: the dataset's; MAMe 32")
    group.add_argument(
        "--cache",
        default="data/cache",
        metavar="DIR",
        help="where decoded images and frozen activations are kept, or 'none' (default: %(default)s)",
    )
    group.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="go on without images that are missing or cannot be decoded, and record them",
    )
    group.add_argument(
        "--out", metavar="DIR", help="new folder for the results (default: named after what is run)"
    )
    if resume:
        group.add_argument(
            "--resume",
            metavar="RUN",
            help="go on with this interrupted run, with its own settings (the same command run again "
            "does so too)",
        )


def parse_arguments(parser, argv):
    """The arguments of `argv`; with --resume RUN those of that run's config.json, and no others.

    BadInput where --resume comes with other flags, or names no run of this script.
    """
    args = parser.parse_args(argv)
    if not args.resume:
        return args
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), ...)))
    others = [key for key, value in vars(given).items() if value is not ... and key != "resume"]
    if others:
        raise BadInput(
            f"--resume {args.resume} takes every setting from that run; leave out the other flags "
            f"({', '.join(others)})."
        )
    config = read_json(Path(args.resume) / "config.json")
    if config.get("script") != parser.prog:
        raise BadInput(
            f"{args.resume} is a run of {config.get('script')}; resume it with `python "
            f"{config.get('script')} --resume {args.resume}`."
        )
    return argparse.Namespace(**vars(args) | config["arguments"] | {"resume": args.resume})


def add_compute_arguments(group, workers=False):
    """--devices and --precision, for the scripts that build a network; `workers`: --workers too."""
    group.add_argument(
        "--devices",
        type=positive,
        metavar="N",
        help="share each batch out among N local devices (default: all accelerators; without one, N "
        "virtual devices of the CPU, to try it out)",
    )
    if workers:
        group.add_argument(
            "--workers",
            action="store_true",
            help="this process is one of several, on any machines, that share the work out, as TF_CONFIG "
            "(tensorflow) or KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID (jax) say",
        )
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="in which the network computes; what is stored stays float32 (default: %(default)s)",
    )


def natural(text):
    """argparse type: an integer of 0 or more."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise ValueError
    return value


def positive(text):
    """argparse type: an integer of 1 or more."""
    value = natural(text)
    if value == 0:
        raise ValueError
    return value


def positive_float(text):
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def resolve_arguments(args, dataset):
    """Fill what was left open in `args` with the dataset's own defaults; check the image size."""
    for key, value in dataset.defaults.items():
        if getattr(args, key, ...) is None:
            setattr(args, key, value)
    if args.image_size < 32:
        raise BadInput(f"--image-size {args.image_size}: VGG16 needs images of at least 32 pixels.")
    args.data = str(dataset.root)
    return args


def import_keras():
    """Keras, without the start-up lines that TensorFlow prints before any log level applies."""
    sys.stderr.flush()
    keep, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        import keras
    finally:
        os.dup2(keep, 2)
        os.close(keep)
        os.close(null)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # of retracing, which is meant where it is done
    return keras


# Batches and augmentation ----------------------------------------------------------------


@dataclass
class Batches:
    """Batches of (inputs, labels), drawn by (seed, epoch, row) alone; `fitting.Feed` gives them to Keras.

    Each item is (inputs (b, ...) as they are stored, labels int64 (b,)); the last batch holds what is left
    over. With `augment` the inputs are (images, maps float32 (b, 6)): `inputs.on_images` does on the device
    what the maps say. On several devices a third part, float32 (b,), gives the rows' weights: the batch is
    filled up with rows of weight 0 to what the devices share out evenly.
    """

    inputs: np.ndarray  # (n, ...), perhaps a memory map: uint8 RGB images, or activations
    labels: np.ndarray  # (n,) int64
    batch_size: int
    seed: int = None  # of the order of the rows in each epoch; None keeps them as they are
    epoch: int = 0  # the first one
    augment: dict = None  # ranges (study.AUGMENTATION) of a map for each image; {}: all stay in place
    share: Share = field(default_factory=lambda: current_share())  # of this moment

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def rows(self, index):
        """Rows of batch `index`, which depend on (seed, epoch, index) alone."""
        order = order_of_rows(len(self.labels), self.seed, self.epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def __getitem__(self, index):
        rows = self.rows(index)
        count = len(rows)
        rows = np.resize(rows, count + -count % self.share.replicas)  # repeats the first ones
        x, y = self.inputs[rows], self.labels[rows]
        if self.augment is not None:
            height, width = x.shape[1:3]
            draws = [STILL] * len(rows)
            if self.augment:
                rngs = [np.random.default_rng([self.seed, self.epoch, row]) for row in rows]
                draws = [draw_augmentation(rng, height, width, self.augment) for rng in rngs]
            x = x, affine_maps(draws, height, width)
        if self.share.replicas == 1:
            return x, y
        counts = (np.arange(len(rows)) < count).astype("float32")  # those repeated count nothing
        if self.seed is not None:  # in training the loss is a mean over all rows: keep its size
            counts *= len(rows) / count
        if feeds_whole_batches():
            return x, y, counts
        own = np.array_split(np.arange(len(rows)), self.share.workers)[self.share.worker]
        x = tuple(part[own] for part in x) if isinstance(x, tuple) else x[own]
        return x, y[own], counts[own]


class OneAhead:
    """make(0), make(1) ... up to `count`: a thread makes the next one while one is used."""

    def __init__(self, make, count):
        self.make, self.count, self.thread, self.ahead = make, count, ThreadPoolExecutor(1), {}

    def __getitem__(self, index):
        item = self.ahead.pop(index, None) or self.thread.submit(self.make, index)
        if index + 1 < self.count:
            self.ahead = {index + 1: self.thread.submit(self.make, index + 1)}
        return item.result()


@functools.lru_cache(maxsize=4)
def order_of_rows(count, seed, epoch):
    """The order in which `count` rows come in an epoch: int64 (count,); as they are where seed is None."""
    order = np.arange(count)
    return order if seed is None else np.random.default_rng([seed, epoch]).permutation(order)


def outputs_of(model, images, batch_size):
    """A function (start, stop) -> model(images[start:stop]), for `make_array`: float32 (b, ...).

    images: uint8 (n, h, w, 3). Not compiled with XLA on a CPU, where that is slower (benchmarks/README.md).
    """
    import keras

    from transfer.inputs import on_images

    share = current_share()
    if share.workers > 1:  # each computes what it is asked for alone, with weights of its own
        weights, share = model.get_weights(), Share()

        def build():
            copy = keras.models.clone_model(model)
            copy.set_weights(weights)
            return on_images(copy)

        predict = on_own_device(on_own_device(build)().predict_on_batch)
    else:
        network = on_images(model)
        predict = network.predict_on_batch
        if share.replicas > 1:  # that would not share the batch out
            predict = functools.partial(network.predict, batch_size=batch_size, verbose=0)
    source = Batches(images, np.zeros(len(images), "int64"), batch_size, share=share)

    def fetch(index):
        batch = source[index][0]
        return batch if share.replicas > 1 else keras.ops.convert_to_tensor(batch)  # on the device already

    batches = OneAhead(fetch, len(source))

    def produce(start, stop):
        return np.asarray(predict(batches[start // batch_size]), "float32")[: stop - start]

    return produce


def draw_augmentation(rng, height, width, ranges=AUGMENTATION):
    """Parameters of one random transformation within `ranges`: a dict in ImageDataGenerator's terms.

    theta in degrees, tx and ty in pixels, zx and zy as factors, flip_horizontal.
    """
    zoom = ranges["zoom_range"]
    return {
        "theta": rng.uniform(-ranges["rotation_range"], ranges["rotation_range"]),
        "tx": rng.uniform(-1, 1) * ranges["width_shift_range"] * width,
        "ty": rng.uniform(-1, 1) * ranges["height_shift_range"] * height,
        "zx": rng.uniform(1 - zoom, 1 + zoom),
        "zy": rng.uniform(1 - zoom, 1 + zoom),
        "flip_horizontal": ranges["horizontal_flip"] and rng.random() < 0.5,
    }


# What `draw_augmentation` gives for an image that stays as it is.
STILL = {"theta": 0, "tx": 0, "ty": 0, "zx": 1, "zy": 1, "flip_horizontal": 0}


def affine_maps(draws, height, width):
    """Rotation, shift and zoom about the centre, then the mirror, as one map from output to input pixels.

    draws: dicts of `draw_augmentation`. Returns float32 (b, 6), as `inputs.move_pixels` takes them.
    """
    draw = {key: np.array([draw[key] for draw in draws], "float64") for key in draws[0]}
    cos, sin = np.cos(np.deg2rad(draw["theta"])), np.sin(np.deg2rad(draw["theta"]))
    zero, one, mirrored = np.zeros(len(draws)), np.ones(len(draws)), draw["flip_horizontal"]

    def matrices(first, second):
        return np.array([first, second, [zero, zero, one]]).transpose(2, 0, 1)  # (b, 3, 3)

    rotation = matrices([cos, -sin, zero], [sin, cos, zero])
    shift = matrices([one, zero, draw["tx"]], [zero, one, draw["ty"]])
    zoom = matrices([draw["zx"], zero, zero], [zero, draw["zy"], zero])
    mirror = matrices([1 - 2 * mirrored, zero, (width - 1) * mirrored], [zero, one, zero])
    centre = np.array([[1, 0, (width - 1) / 2], [0, 1, (height - 1) / 2], [0, 0, 1]])
    maps = centre @ rotation @ shift @ zoom @ np.linalg.inv(centre) @ mirror
    return maps[:, :2].reshape(-1, 6).astype("float32")


# VGG16 and its heads ---------------------------------------------------------------------


def build_model(image_size, classes, head, l2=0.01, name="vgg16"):
    """VGG16's 13 convolutions with one of study.HEADS and a softmax, all weights new.

    Input float32 (b, image_size, image_size, 3) from `preprocess_input`, output (b, classes).
    Dense layers are named fc1, fc2, fc3, predictions.
    """
    import keras

    shape = (image_size, image_size, 3)
    base = keras.applications.VGG16(include_top=False, weights=None, input_shape=shape)
    x, dense = base.output, 0
    for kind, *settings in HEADS[head]:
        if kind == "flatten":
            layer = keras.layers.Flatten(name="flatten")
        elif kind == "layers":
            x = pooled_model(base, convolutions(base))[0].output
            continue
        elif kind == "global_average_pooling":
            layer = keras.layers.GlobalAveragePooling2D(name="global_average_pooling")
        elif kind == "batch_normalization":
            layer = keras.layers.BatchNormalization(name="batch_normalization")
        elif kind == "dropout":
            # Without a seed of its own it would draw from PyTorch's global state, which no file holds;
            # this one is Keras' default, and follows set_random_seed.
            seed = random.randint(1, 10**9)
            layer = keras.layers.Dropout(settings[0], seed=seed, name=f"dropout{dense}")
        else:
            dense += 1
            penalty = keras.regularizers.L2(l2) if "l2" in settings else None
            layer = keras.layers.Dense(
                settings[0], activation="relu", kernel_regularizer=penalty, name=f"fc{dense}"
            )
        x = layer(x)
    x = keras.layers.Dense(classes, activation="softmax", name="predictions")(x)
    return keras.Model(base.input, x, name=name)


def convolutions(model):
    """Names of the convolutions of `model`, first to last."""
    import keras

    return [layer.name for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def reads_every_layer(model):
    """Whether the head of `model` takes something of every convolution (head "layers")."""
    return any(layer.name == "features" for layer in model.layers)


def set_trainable(model, blocks):
    """Make the convolutions of `blocks` and every layer of the head trainable, nothing else.

    Takes effect at the next compile.
    """
    for name in convolutions(model):
        model.get_layer(name).trainable = name.split("_")[0] in blocks


def split_model(model, boundary):
    """Two models that share the layers of `model`, up to and from the layer named `boundary`."""
    import keras

    names = [layer.name for layer in model.layers]
    lower = keras.Model(model.input, model.get_layer(boundary).output)
    x = inputs = keras.Input(lower.output.shape[1:])
    for layer in model.layers[names.index(boundary) + 1 :]:
        x = layer(x)
    return lower, keras.Model(inputs, x)


# Callbacks -------------------------------------------------------------------------------


def training_callbacks(checkpoint, done=()):
    """Early stopping on val_loss, and the weights of the best val_accuracy kept in `checkpoint`.

    checkpoint: path that may hold {epoch}. done: the figures of the epochs that an interrupted training has
    behind it. Keras saves neither callback's state, but it follows from these.
    """
    import keras

    from transfer.fitting import ResumedEarlyStopping

    stopping = ResumedEarlyStopping(monitor="val_loss", patience=EARLY_STOPPING_PATIENCE)
    stopping.done = done
    kept = keras.callbacks.ModelCheckpoint(
        checkpoint,
        monitor="val_accuracy",
        mode="max",
        save_best_only=True,
        save_weights_only=True,
        initial_value_threshold=max((row["val_accuracy"] for row in done), default=None),
    )
    kept.async_safe = True  # it acts at the end of epochs, so no batch's loss need be waited for
    return [stopping, kept]


# Layer-wise pooling ----------------------------------------------------------------------


def feature_layers(model, layers):
    """Names of the layers of `model` that --layers names, first to last.

    "all": every convolution and dense layer but the softmax; "conv": the convolutions; "last": the
    last convolution of each block; or names separated by commas. BadInput for an unknown name.
    """
    import keras

    conv = convolutions(model)
    dense = [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    known = conv + [name for name in dense if name != "predictions"]
    return select_layers(known, layers)


def select_layers(known, layers):
    """The names among `known` that --layers names; see `feature_layers`."""
    conv = [name for name in known if "_conv" in name]
    if layers == "all":
        return known
    if layers == "conv":
        return conv
    if layers == "last":
        return list({name.split("_")[0]: name for name in conv}.values())
    names = [name.strip() for name in layers.split(",")]
    for name in names:
        if name not in known:
            raise BadInput(
                f"--layers: there is no layer {name!r}; choose all, last, conv or among {', '.join(known)}."
            )
    return [name for name in known if name in names]


def pooled_model(model, names):
    """A model that gives the features of all named layers in one pass.

    Each convolution's activation is averaged over its positions, dense layers are taken as they
    are (STUDY, "Feature extraction"). Returns (model with output float32 (b, n_features),
    {layer: [first column, column after its last]}).
    """
    import keras

    outputs, columns, start = [], {}, 0
    for name in names:
        output = model.get_layer(name).output
        if len(output.shape) == 4:
            output = keras.layers.GlobalAveragePooling2D(name=f"{name}_mean", dtype="float32")(output)
        outputs.append(output)
        columns[name] = [start, start + output.shape[-1]]
        start += output.shape[-1]
    joined = (
        keras.layers.Concatenate(name="features", dtype="float32")(outputs)
        if len(outputs) > 1
        else outputs[0]
    )
    return keras.Model(model.input, joined), columns


def discretise(features):
    """-1 below -0.25, +1 above 0.15, else 0, for standardised features (n, n_features); float32.

    The thresholds of the full-network embedding (Garcia-Gasulla et al. 2018).
    """
    low, high = EMBEDDING_THRESHOLDS
    return (features > high).astype("float32") - (features < low)
