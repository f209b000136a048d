"""Batches, augmentation, VGG16 and its heads, callbacks, pooling: common.py."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import common
from transfer.study import AUGMENTATION
from transfer.weights import load_weights, with_precision

# What stands behind the convolutions, layer by layer.
HEADS = {
    "i": "flatten | fc1 512 relu | dropout1 0.2 | fc2 512 relu | predictions 29 softmax",
    "ii": "flatten | batch_normalization | fc1 512 relu 0.25 | dropout1 0.3 | fc2 512 relu 0.25 "
    "| predictions 29 softmax",
    "iii": "flatten | batch_normalization | fc1 256 relu 0.25 | dropout1 0.4 | fc2 256 relu 0.25 "
    "| fc3 256 relu 0.25 | predictions 29 softmax",
    "fc": "flatten | fc1 4096 relu | dropout1 0.5 | fc2 4096 relu | dropout2 0.5 "
    "| predictions 29 softmax",
    "gap": "global_average_pooling | predictions 29 softmax",
    "multilayer": "features | batch_normalization | predictions 29 softmax",
}
# The number of features that --layers names.
FEATURES = {
    "fc": {"all": 12416, "conv": 4224, "last": 1472, "block5_conv3": 512, "fc2,block1_conv1": 4160},
    "iii": {"all": 4992},
    "gap": {"all": 4224},
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), "uint8")


def batches_of(images, batch_size=10, epoch=0, **settings):
    """Batches of the images, each labelled with its row, in an epoch."""
    batches = common.Batches(images, np.arange(10), batch_size, **settings)
    batches.epoch = epoch
    return batches


# ---------------------------------------------------------------------------------------- batches


def taken(batches):
    """The inputs of all batches of an epoch, and their labels: a tuple each."""
    return zip(*[batches[index] for index in range(len(batches))])


def test_every_row_comes_once_with_its_label_and_a_part_batch_is_kept(images):
    x, y = taken(batches_of(images, 4, seed=1))
    assert [len(labels) for labels in y] == [4, 4, 2]

    # a row's label is its number
    rows = np.concatenate(y)
    assert sorted(rows) == list(range(10))
    np.testing.assert_array_equal(np.concatenate(x), images[rows], strict=True)


def test_shuffling_follows_seed_and_epoch_alone(images):
    def order(seed, epoch=0):
        return batches_of(images, epoch=epoch, seed=seed).rows(0).tolist()

    assert order(None) == list(range(10))
    assert order(1) != order(2)
    assert order(1) != order(1, epoch=1)

    # taken out of order before the epoch ends
    batches = batches_of(images, 4, seed=1)
    batches[2]
    batches.on_epoch_end()
    _, rows = taken(batches)
    assert np.concatenate(rows).tolist() == order(1, epoch=1)


def test_fit_takes_every_batch_of_every_epoch_in_its_turn():
    """However far an engine fetches ahead, no batch of one epoch is taken for that of another."""
    taken = []

    class Recorded(common.Batches):
        def __getitem__(self, index):
            taken.append((self.epoch, index))
            return super().__getitem__(index)

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse")

    # as a training that goes on after four epochs
    batches = Recorded(np.zeros((10, 1)), np.zeros(10), 2, seed=1)
    batches.epoch = 4
    model.fit(batches, epochs=3, shuffle=False, verbose=0)

    # before them Keras looks at some to see their shapes, and says once that an epoch has ended
    assert taken[-15:] == [(epoch, index) for epoch in (5, 6, 7) for index in range(5)]


# ----------------------------------------------------------------------------------- augmentation


def test_augmentation_is_the_same_for_the_same_seed_epoch_and_row(images):
    def matrices(batch_size, epoch=0):
        """Of all rows in an epoch, by row."""
        x, y = taken(batches_of(images, batch_size, epoch, seed=3, augment=AUGMENTATION))
        found = np.concatenate([maps for _, maps in x])
        return found[np.argsort(np.concatenate(y))]

    np.testing.assert_array_equal(matrices(3), matrices(10))

    # in another epoch each is another
    moved = np.abs(matrices(10, epoch=1) - matrices(10))
    assert moved.max(axis=1).min() > 0.01


@pytest.mark.parametrize("side", [32, 25])
def test_geometry_equals_the_legacy_image_data_generator(side):
    legacy = pytest.importorskip("keras.src.legacy.preprocessing.image")
    oracle = legacy.ImageDataGenerator(fill_mode="nearest", data_format="channels_last")

    # pictures of noise
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 255, (6, side, side, 3)).astype("float32")
    moves = [common.sample_augmentation(rng, side, side) for _ in x]  # some of them mirror

    matrices = common.affine_matrices(moves, side, side)
    warped = keras.ops.convert_to_numpy(common.AffineWarp(dtype="float32")(x, matrices))
    expected = [oracle.apply_transform(image, move) for image, move in zip(x, moves)]
    np.testing.assert_allclose(warped, expected, atol=0.05)


def test_samples_fill_the_studys_ranges():
    rng = np.random.default_rng(0)
    samples = [common.sample_augmentation(rng, 100, 200) for _ in range(2000)]
    values = np.array([list(sample.values()) for sample in samples])

    # theta, tx, ty, zx, zy, flip_horizontal
    middle = [0, 0, 0, 1, 1, 0.5]
    width = [20, 40, 20, 0.2, 0.2, 0.5]
    spread = (values - middle) / width
    assert np.abs(spread).max() <= 1
    assert np.ptp(spread, axis=0).min() > 1.96
    assert np.abs(spread.mean(axis=0)).max() < 0.1

    # a zoom for each axis
    assert np.corrcoef(spread.T)[3, 4] < 0.1


# ------------------------------------------------------------------------------------ the network


def describe(layer):
    """A layer of a head in a few words, as in HEADS."""
    config = layer.get_config()
    words = [config[key] for key in ("name", "units", "rate", "activation") if key in config]
    if config.get("kernel_regularizer"):
        words.append(float(layer.kernel_regularizer.l2))
    return " ".join(map(str, words))


@pytest.mark.parametrize("head", HEADS)
def test_each_head_has_its_layers_and_number_of_features(head):
    model = common.build_model(32, 29, head, l2=0.25)

    # layer by layer
    behind = model.layers[3:]  # images, flip and preprocessing
    found = [describe(layer) for layer in behind if "block" not in layer.name]
    assert " | ".join(found) == HEADS[head]

    # the features of each --layers
    for layers, count in FEATURES.get(head, {}).items():
        pooled, _ = common.feature_extractor(model, common.layer_names(model, layers))
        assert pooled.output_shape == (None, count), layers


def test_a_network_takes_pictures_and_preprocesses_them_as_keras_does(images, narrow):
    model = common.build_model(32, 4, "gap")
    inside = keras.Model(model.input, model.get_layer("preprocessing").output)
    expected = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    np.testing.assert_array_equal(inside.predict_on_batch(images), expected)

    # validation takes the road of augmentation, each picture in its place
    batch, _ = batches_of(images, augment={})[0]
    still = common.augmented_model(model).predict_on_batch(batch)
    np.testing.assert_allclose(still, model.predict_on_batch(images), rtol=1e-5)


@pytest.mark.slow
def test_a_saved_network_needs_none_of_this_code(images, narrow, tmp_path):
    """keras.saving.load_model where nothing of ours is imported, on plain uint8 pictures."""
    model = with_precision(common.build_model(32, 4, "multilayer", seed=0), "bfloat16")
    model.save(tmp_path / "model.keras")

    # elsewhere
    np.save(tmp_path / "images.npy", images)
    code = """if True:
        import keras, numpy
        model = keras.saving.load_model("model.keras")
        found = model.predict(numpy.load("images.npy"), batch_size=10, verbose=0)
        numpy.save("found.npy", found)
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

    # the same answers
    found = np.load(tmp_path / "found.npy")
    expected = model.predict_on_batch(images)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_callbacks_stop_on_val_loss_and_keep_the_best_val_accuracy():
    stopping, best = common.training_callbacks()
    assert (stopping.monitor, stopping.patience) == ("val_loss", 20)

    # a network whose bias is the number of the epoch
    layer = keras.layers.Dense(1)
    best.set_model(keras.Sequential([keras.Input((1,)), layer]))
    for number, accuracy in enumerate((0.5, 0.7, 0.6, 0.7)):
        layer.bias.assign([number])
        best.on_epoch_end(number, {"val_accuracy": accuracy})

    # a copy; of equals the first
    assert best.weights[-1] == [1]


# --------------------------------------------------------------------------------------- features


def test_pooled_values_equal_numpys_mean_of_the_raw_activations(images, narrow):
    model = common.build_model(32, 4, "iii")
    load_weights(model, "none", seed=0)
    pooled, columns = common.feature_extractor(model, common.layer_names(model, "all"))
    features = pooled.predict_on_batch(images)

    # layer by layer
    outputs = [model.get_layer(name).output for name in columns]
    activations = keras.Model(model.input, outputs).predict_on_batch(images)
    for (start, stop), raw in zip(columns.values(), activations):
        expected = raw.reshape(10, -1, stop - start).mean(axis=1, dtype="float64")
        np.testing.assert_allclose(features[:, start:stop], expected, rtol=2e-4, atol=1e-3)
