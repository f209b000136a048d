"""What the scripts share: batches, augmentation and preprocessing, VGG16 with its heads, the
callbacks of training, and layer-wise pooling.

A network of this project takes pictures as they are, RGB of 0 to 255; VGG16's preprocessing is part
of it.
"""

import functools
import random

import numpy as np

from transfer.backend import keras
from transfer.console import BadInput, progress
from transfer.devices import Share
from transfer.recipes import EARLY_STOPPING_PATIENCE
from transfer.study import AUGMENTATION, EMBEDDING_THRESHOLDS

layers = keras.layers
ops = keras.ops

IMAGENET_MEAN = (103.939, 116.779, 123.68)  # BGR, as keras.applications.vgg16 subtracts it

# What stands between block5_pool and the softmax. i, ii and iii are the study's (section
# "Fine-tuning"; "l2": with the penalty). "fc" is VGG16's own top (Simonyan and Zisserman 2015,
# section 3.1), "gap" has global average pooling instead. "multilayer" is ours: a softmax on every
# convolution's mean.
HEADS = {
    "i": ("flatten", "dense 512", "dropout 0.2", "dense 512"),
    "ii": ("flatten", "batch_normalization", "dense 512 l2", "dropout 0.3", "dense 512 l2"),
    "iii": (
        "flatten",
        "batch_normalization",
        "dense 256 l2",
        "dropout 0.4",
        "dense 256 l2",
        "dense 256 l2",
    ),
    "fc": ("flatten", "dense 4096", "dropout 0.5", "dense 4096", "dropout 0.5"),
    "gap": ("global_average_pooling",),
    "multilayer": ("batch_normalization",),
}
PLAIN_LAYERS = {  # those of a head that have no settings
    "flatten": layers.Flatten,
    "global_average_pooling": layers.GlobalAveragePooling2D,
    "batch_normalization": layers.BatchNormalization,
}


# ---------------------------------------------------------------------------------------- batches


@functools.lru_cache(4)  # computed once an epoch and not for each batch of it
def order_of_rows(count, seed, epoch):
    """The order of `count` rows in an epoch, int64 (count,); as they are where `seed` is None."""
    if seed is None:
        return np.arange(count)
    return np.random.default_rng([seed, epoch]).permutation(count)


class Batches(keras.utils.PyDataset):
    """Batches of (inputs, labels), which depend on (seed, epoch, row) alone.

    inputs: (n, ...), perhaps a memory map: uint8 RGB images or activations. labels: (n,) int64.
    seed: of the order of the rows in each epoch; None keeps them as they are. augment: ranges
    (study.AUGMENTATION) of an affine map for each image; with {} all stay in place. share: of the
    batch, for several devices.

    Each item is (inputs (b, ...) as they are stored, labels (b,)); the last batch holds what is
    left over. With `augment` the inputs are (images, matrices float32 (b, 6)), which the device
    applies (`augmented_model`). With `class_weights`, float32 (classes,), a third part, float32
    (b,), weighs the rows; on several devices as well, where rows of weight 0 fill up a batch until
    it can be shared out."""

    def __init__(self, inputs, labels, batch_size, seed=None, augment=None, share=Share()):  # noqa: B008
        super().__init__()
        self.inputs = inputs
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.share = share
        self.class_weights = None
        self.epoch = 0

    def __len__(self):
        return -(-len(self.labels) // self.batch_size)

    def on_epoch_end(self):
        self.epoch += 1

    def rows(self, index):
        """Rows of batch `index`, which depend on (seed, epoch, index) alone."""
        order = order_of_rows(len(self.labels), self.seed, self.epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def __getitem__(self, index):
        rows = self.rows(index)
        count = len(rows)
        # filled up by its first rows until every device gets equally many
        rows = np.resize(rows, count + -count % self.share.replicas)
        weights = self.weights_of(self.labels[rows], count)

        # this process' part of the batch
        rows = np.array_split(rows, self.share.processes)[self.share.process]
        weights = np.array_split(weights, self.share.processes)[self.share.process]

        x = self.inputs_of(rows)
        y = self.labels[rows]
        if self.share.replicas == 1 and self.class_weights is None:
            return x, y
        return x, y, weights

    def inputs_of(self, rows):
        """The network's inputs for these rows: as they are, or with a matrix for each image."""
        x = self.inputs[rows]
        if self.augment is None:
            return x
        height, width = x.shape[1:3]
        moves = [IDENTITY] * len(rows)
        if self.augment:
            rngs = [np.random.default_rng([self.seed, self.epoch, row]) for row in rows]
            moves = [sample_augmentation(rng, height, width, self.augment) for rng in rngs]
        return x, affine_matrices(moves, height, width)

    def weights_of(self, y, count):
        """Weights float32 (b,) of rows with the labels `y`, of which the first `count` are no
        filling."""
        weights = np.ones(len(y), "float32")
        if self.class_weights is not None:
            weights = self.class_weights[y]
        weights[count:] = 0
        if self.seed is not None:  # in training the loss is a mean over all rows: keep its size
            weights *= len(y) / count
        return weights


# ----------------------------------------------------------------------------------- augmentation

# What `sample_augmentation` gives for an image that stays as it is.
IDENTITY = {"theta": 0, "tx": 0, "ty": 0, "zx": 1, "zy": 1, "flip_horizontal": 0}


def sample_augmentation(rng, height, width, ranges=AUGMENTATION):
    """One random transformation within `ranges`: a dict in ImageDataGenerator's terms. theta in
    degrees, tx and ty in pixels, zx and zy as factors, flip_horizontal."""
    zoom = ranges["zoom_range"]
    return {
        "theta": rng.uniform(-ranges["rotation_range"], ranges["rotation_range"]),
        "tx": rng.uniform(-1, 1) * ranges["width_shift_range"] * width,
        "ty": rng.uniform(-1, 1) * ranges["height_shift_range"] * height,
        "zx": rng.uniform(1 - zoom, 1 + zoom),
        "zy": rng.uniform(1 - zoom, 1 + zoom),
        "flip_horizontal": ranges["horizontal_flip"] and rng.random() < 0.5,
    }


def affine_matrices(moves, height, width):
    """Rotation, shift, zoom and mirror about the centre as one map from output to input pixels.
    moves: dicts of `sample_augmentation`. Returns float32 (b, 6), as `AffineWarp` takes them."""
    centre = [(width - 1) / 2, (height - 1) / 2]
    matrices = []
    for move in moves:
        angle = np.deg2rad(move["theta"])
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        mirror = 1 - 2 * move["flip_horizontal"]  # about the centre too: it turns a sign
        linear = rotation * [move["zx"] * mirror, move["zy"]]
        offset = centre + rotation @ [move["tx"], move["ty"]] - linear @ centre
        matrices.append(np.column_stack([linear, offset]).ravel())
    return np.array(matrices, "float32")


class AffineWarp(layers.Layer):
    """Each of images (b, h, w, channels) through its matrix, bilinear, the edges repeated; float32.
    matrices: float32 (b, 6), from output to input: column = a0 x + a1 y + a2, row = a3 x + a4 y +
    a5."""

    def __init__(self, **settings):
        super().__init__(**settings)
        # XLA does not know the operation by which TensorFlow does it
        self.supports_jit = keras.backend.backend() != "tensorflow"

    def call(self, images, matrices):
        whole = ops.pad(matrices, ((0, 0), (0, 2)))
        images = ops.cast(images, "float32")
        return ops.image.affine_transform(images, whole, "bilinear", "nearest")


def augmented_model(model):
    """`model`, with all its layers, on (uint8 images, matrices) as `Batches` gives with
    `augment`."""
    images = keras.Input(model.input.shape[1:], dtype="uint8", name="images")
    matrices = keras.Input((6,), name="matrices")
    warped = AffineWarp(dtype="float32")(images, matrices)
    return keras.Model((images, matrices), model(warped))


# ------------------------------------------------------------------------------------ the network


def build_model(image_size, classes, head, l2=0.01, seed=None, name="vgg16"):
    """VGG16's 13 convolutions with one of HEADS and a softmax, all weights new. Input (b,
    image_size, image_size, 3), RGB of 0 to 255; output (b, classes). Preprocessing is that of
    `keras.applications.vgg16.preprocess_input`, in standard layers, so that a saved network needs
    none of this code. Dense layers are named fc1, fc2, fc3, predictions. seed: of the head's
    weights and of dropout."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    images = keras.Input((image_size, image_size, 3), name="images")
    bgr = ops.flip(images, axis=-1)
    offset = [-mean for mean in IMAGENET_MEAN]
    bgr = layers.Rescaling(1.0, offset=offset, dtype="float32", name="preprocessing")(bgr)
    base = keras.applications.VGG16(include_top=False, weights=None, input_tensor=bgr)
    x = base.output
    if head == "multilayer":
        x = feature_extractor(base, convolutions(base))[0].output
    x = add_head(x, HEADS[head], l2)
    # a softmax in bfloat16 would have three digits
    x = layers.Dense(classes, activation="softmax", dtype="float32", name="predictions")(x)
    return keras.Model(images, x, name=name)


def add_head(x, kinds, l2):
    """The output of the layers that `kinds`, one of HEADS, lists, with `x` as the first one's
    input."""
    dense = 0
    for kind, *settings in map(str.split, kinds):
        if kind in PLAIN_LAYERS:
            x = PLAIN_LAYERS[kind](name=kind)(x)
        elif kind == "dropout":
            # Without a seed of its own it would use PyTorch's global state, which no file holds;
            # this one is Keras' default, and follows set_random_seed.
            seed = random.randint(1, 10**9)
            x = layers.Dropout(float(settings[0]), seed=seed, name=f"dropout{dense}")(x)
        elif kind == "dense":
            dense += 1
            width, *penalised = settings
            penalty = keras.regularizers.L2(l2) if penalised else None
            x = layers.Dense(int(width), "relu", kernel_regularizer=penalty, name=f"fc{dense}")(x)
    return x


def all_layers(model):
    """Yields the layers of a model, and of models within it, in their order."""
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from all_layers(layer)
        else:
            yield layer


def convolutions(model):
    """Names of the convolutions of `model`, first to last."""
    return [layer.name for layer in model.layers if isinstance(layer, layers.Conv2D)]


def has_multilayer_head(model):
    """Whether the head of `model` takes something of every convolution."""
    return any(layer.name == "features" for layer in model.layers)


def set_trainable(model, blocks):
    """Have the convolutions of `blocks` and the head train, nothing else, from the next compile
    on."""
    for name in convolutions(model):
        block, _ = name.split("_")
        model.get_layer(name).trainable = block in blocks


def split_model(model, boundary):
    """Two models that share the layers of `model`, up to and from the layer named `boundary`."""
    middle = model.get_layer(boundary).output
    return keras.Model(model.input, middle), keras.Model(middle, model.output)


# -------------------------------------------------------------------------------------- callbacks


def trained_weights(model):
    """The variables that training changes: those of all layers that are not frozen, in their
    order."""
    return [weight for layer in all_layers(model) if layer.trainable for weight in layer.weights]


class ResumedEarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping that first sees again the figures of the epochs in `done`, before an
    interrupt, and that ends a training whose loss is no number, before the checkpoint keeps its
    weights."""

    done = ()

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        for epoch, figures in enumerate(self.done):
            self.on_epoch_end(epoch, figures)

    def on_epoch_end(self, epoch, logs=None):
        if not np.isfinite([logs["loss"], logs["val_loss"]]).all():
            raise BadInput(
                f"The training diverged in epoch {epoch + 1} of this stage (loss {logs['loss']:g}, "
                f"val_loss {logs['val_loss']:g}); lower --learning-rate, or in an unfrozen stage "
                "--fine-tune-learning-rate."
            )
        super().on_epoch_end(epoch, logs)


class BestWeights(keras.callbacks.Callback):
    """A checkpoint of the best val_accuracy that stays in memory: a GPU trains an epoch of a
    thousand pictures in less time than it takes to write VGG16 to disk. weights: arrays of
    `trained_weights`."""

    def __init__(self, weights=None, val_accuracy=-np.inf):
        super().__init__()
        self.weights = weights
        self.val_accuracy = val_accuracy

    def on_epoch_end(self, epoch, logs=None):
        if logs["val_accuracy"] > self.val_accuracy:
            self.weights = [weight.numpy() for weight in trained_weights(self.model)]
            self.val_accuracy = logs["val_accuracy"]


def training_callbacks(done=(), weights=None):
    """Early stopping on val_loss, and a checkpoint of the best val_accuracy. done: the figures of
    epochs that an interrupted training has behind it, weights: those of the best one. Keras saves
    neither callback's state, but it follows from these."""
    stopping = ResumedEarlyStopping(monitor="val_loss", patience=EARLY_STOPPING_PATIENCE)
    stopping.done = done
    best = max((row["val_accuracy"] for row in done), default=-np.inf)
    return [stopping, BestWeights(weights, best)]


class ProgressLines(keras.callbacks.Callback):
    """Within an epoch, a line now and then where the output is no terminal: images a second, time
    left."""

    async_safe = True  # Keras need not wait for a batch's loss to call it

    def __init__(self, batches):
        super().__init__()
        self.images = len(batches.labels)
        self.batch_size = batches.batch_size

    def on_epoch_begin(self, epoch, logs=None):
        self.bar = progress(None, f"epoch {epoch + 1}", self.images, " images")

    def on_train_batch_end(self, batch, logs=None):
        seen = min((batch + 1) * self.batch_size, self.images)
        self.bar.update(max(0, seen - self.bar.n))

    def on_epoch_end(self, epoch, logs=None):
        self.bar.close()


# ------------------------------------------------------------------------------ layer-wise pooling


def layer_names(model, wanted):
    """Names of the layers of `model` that --layers names, first to last: see `parse_layers`."""
    dense = [layer.name for layer in model.layers if isinstance(layer, layers.Dense)]
    known = convolutions(model) + [name for name in dense if name != "predictions"]
    return parse_layers(known, wanted)


def parse_layers(known, wanted):
    """The names among `known` that --layers names: "all"; "conv", the convolutions; "last", the
    last one of each block; or names separated by commas. BadInput for an unknown name."""
    conv = [name for name in known if "_conv" in name]
    last_of_block = {name.split("_")[0]: name for name in conv}
    groups = {"all": known, "conv": conv, "last": list(last_of_block.values())}
    if wanted in groups:
        return groups[wanted]
    names = [name.strip() for name in wanted.split(",")]
    for name in names:
        if name not in known:
            raise BadInput(
                f"--layers: there is no layer {name!r}; choose all, last, conv or among "
                f"{', '.join(known)}."
            )
    return [name for name in known if name in names]


def feature_extractor(model, names):
    """A model that gives the features of all named layers in one pass. Each convolution's
    activation is averaged over its positions, dense layers are taken as they are (STUDY, "Feature
    extraction"). Returns (model with output float32 (b, n_features), {layer: [first column, column
    after its last]})."""
    outputs = []
    columns = {}
    start = 0
    for name in names:
        output = model.get_layer(name).output
        if len(output.shape) == 4:
            mean = layers.GlobalAveragePooling2D(name=f"{name}_mean", dtype="float32")
            output = mean(output)
        outputs.append(output)
        stop = start + output.shape[-1]
        columns[name] = [start, stop]
        start = stop
    joined = layers.Concatenate(name="features", dtype="float32")(outputs)
    return keras.Model(model.input, joined), columns


def discretize(features):
    """-1 below -0.25, +1 above 0.15, else 0, for standardised features (n, n_features); float32.
    The thresholds of the full-network embedding (Garcia-Gasulla et al. 2018)."""
    low, high = EMBEDDING_THRESHOLDS
    return (features > high).astype("float32") - (features < low)


def signed_square_root(features):
    """Square roots of features (n, n_features), negative ones' with their sign: their long tails
    become shorter (power normalisation, Perronnin et al. 2010)."""
    return np.copysign(np.sqrt(np.abs(features)), features)
