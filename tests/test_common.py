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


def test_every_row_comes_once_with_its_label_and_a_part_batch_is_kept(images):
    batches = batches_of(images, 4, seed=1)
    items = [batches[index] for index in range(len(batches))]
    assert [len(y) for _, y in items] == [4, 4, 2]

    x, y = (np.concatenate(parts) for parts in zip(*items))
    assert sorted(y) == list(range(10))
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x, images[y])


def test_shuffling_follows_seed_and_epoch_alone(images):
    def order(batches):
        return [row for index in range(len(batches)) for row in batches.rows(index)]

    first = order(batches_of(images, 4, seed=1))
    second = order(batches_of(images, 4, seed=1, epoch=1))
    assert order(batches_of(images, 4)) == list(range(10))
    assert first != order(batches_of(images, 4, seed=2))
    assert first != second

    # taken out of order before the epoch ends
    batches = batches_of(images, 4, seed=1)
    batches[2]
    batches.on_epoch_end()
    assert order(batches) == second


def test_fit_takes_every_batch_of_every_epoch_in_its_turn(images):
    """However far an engine fetches ahead, no batch of one epoch is taken for that of another."""
    taken = []

    class Recorded(common.Batches):
        def __getitem__(self, index):
            taken.append((self.epoch, index))
            return super().__getitem__(index)

    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile(loss="mse")
    batches = Recorded(images, np.zeros(10), 2, seed=1)
    batches.epoch = 4
    model.fit(batches, epochs=3, shuffle=False, verbose=0)
    # before them Keras looks at some to see their shapes, and says once that an epoch has ended
    assert taken[-15:] == [(epoch, index) for epoch in (5, 6, 7) for index in range(5)]


# ----------------------------------------------------------------------------------- augmentation


def test_augmentation_is_the_same_for_the_same_seed_epoch_and_row(images):
    def matrices(batch_size, epoch=0):
        """Of all rows in an epoch, by row."""
        batches = batches_of(images, batch_size, epoch, seed=3, augment=AUGMENTATION)
        items = [batches[index] for index in range(len(batches))]
        labels = np.concatenate([y for _, y in items])
        return np.concatenate([maps for (_, maps), _ in items])[np.argsort(labels)]

    np.testing.assert_array_equal(matrices(3), matrices(10))
    assert np.abs(matrices(10, epoch=1) - matrices(10)).max(axis=1).min() > 0.01


@pytest.mark.parametrize(("shape", "flip"), [((32, 32), False), ((32, 32), True), ((25, 25), True)])
def test_geometry_equals_the_legacy_image_data_generator(shape, flip):
    legacy = pytest.importorskip("keras.src.legacy.preprocessing.image")
    oracle = legacy.ImageDataGenerator(fill_mode="nearest", data_format="channels_last")
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 255, (6, *shape, 3)).astype("float32")
    moves = [common.sample_augmentation(rng, *shape) | {"flip_horizontal": flip} for _ in x]
    warped = common.AffineWarp(dtype="float32")(x, common.affine_matrices(moves, *shape))
    for image, move, ours in zip(x, moves, keras.ops.convert_to_numpy(warped)):
        np.testing.assert_allclose(ours, oracle.apply_transform(image, move), atol=0.05)


def test_samples_fill_the_studys_ranges():
    rng = np.random.default_rng(0)
    samples = [common.sample_augmentation(rng, 100, 200) for _ in range(2000)]
    values = {key: np.array([sample[key] for sample in samples]) for key in samples[0]}
    middle_and_range = {
        "theta": (0, 20),
        "tx": (0, 40),
        "ty": (0, 20),
        "zx": (1, 0.2),
        "zy": (1, 0.2),
    }
    for key, (middle, width) in middle_and_range.items():
        reached = (values[key] - middle) / width
        assert -1 <= reached.min() < -0.96
        assert 0.96 < reached.max() <= 1
    assert np.corrcoef(values["zx"], values["zy"])[0, 1] < 0.1
    assert 0.45 < values["flip_horizontal"].mean() < 0.55


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
    names = [layer.name for layer in model.layers]
    behind = model.layers[names.index("preprocessing") + 1 :]
    found = [describe(layer) for layer in behind if "block" not in layer.name]
    assert " | ".join(found) == HEADS[head]

    for layers, count in FEATURES.get(head, {}).items():
        pooled, columns = common.feature_extractor(model, common.layer_names(model, layers))
        assert pooled.output_shape == (None, count), layers
        starts, stops = zip(*columns.values())
        assert (*starts, count) == (0, *stops)


def test_a_network_takes_pictures_and_preprocesses_them_as_keras_does(images, narrow):
    model = common.build_model(32, 4, "gap")
    inside = keras.Model(model.input, model.get_layer("preprocessing").output)
    expected = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    np.testing.assert_array_equal(np.asarray(inside.predict_on_batch(images)), expected)

    batch, _ = batches_of(images, augment={})[0]
    still = np.asarray(common.augmented_model(model).predict_on_batch(batch))
    np.testing.assert_allclose(still, np.asarray(model.predict_on_batch(images)), rtol=1e-5)


@pytest.mark.slow
def test_a_saved_network_needs_none_of_this_code(images, narrow, tmp_path):
    """keras.saving.load_model where nothing of ours is imported, on plain uint8 pictures."""
    expected = {}
    for head in ("iii", "multilayer"):
        model = with_precision(common.build_model(32, 4, head, seed=0), "bfloat16")
        model.save(tmp_path / f"{head}.keras")
        expected[head] = np.asarray(model.predict_on_batch(images))
    np.save(tmp_path / "images.npy", images)

    code = """if True:
        import keras, numpy
        for head in ("iii", "multilayer"):
            model = keras.saving.load_model(head + ".keras", compile=False)
            found = model.predict(numpy.load("images.npy"), batch_size=10, verbose=0)
            numpy.save(head + ".npy", found)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
    for head, ours in expected.items():
        np.testing.assert_allclose(np.load(tmp_path / f"{head}.npy"), ours, rtol=1e-3, atol=1e-5)


def test_callbacks_stop_on_val_loss_and_keep_the_best_val_accuracy():
    stopping, best = common.training_callbacks()
    assert (stopping.monitor, stopping.patience) == ("val_loss", 20)

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    best.set_model(model)
    for number, accuracy in enumerate((0.5, 0.7, 0.6, 0.7)):
        model.layers[-1].bias.assign([number])
        best.on_epoch_end(number, {"val_accuracy": accuracy})
    assert best.weights[-1] == [1]  # a copy; of equals the first


# --------------------------------------------------------------------------------------- features


def test_pooled_values_equal_numpys_mean_of_the_raw_activations(images, narrow):
    model = common.build_model(32, 4, "iii")
    load_weights(model, "none", seed=0)
    pooled, columns = common.feature_extractor(model, common.layer_names(model, "all"))
    features = np.asarray(pooled.predict_on_batch(images))

    for name, (start, stop) in columns.items():
        raw = keras.Model(model.input, model.get_layer(name).output).predict_on_batch(images)
        expected = np.asarray(raw, "float64").reshape(10, -1, stop - start).mean(axis=1)
        np.testing.assert_allclose(features[:, start:stop], expected, rtol=2e-4, atol=1e-3)


def test_discretize_cuts_at_the_thresholds():
    values = np.array([-3, -0.2501, -0.25, 0, 0.15, 0.1501, 3])
    assert common.discretize(values).tolist() == [-1, -1, 0, 0, 0, 1, 1]
