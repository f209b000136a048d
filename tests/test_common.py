"""Batches, augmentation, VGG16 and its heads, pooling: common.py."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import common
from transfer.study import AUGMENTATION
from transfer.weights import load_weights, with_precision

L2, NORMALISED = ("Dense", 256, "l2"), ["Flatten", "BatchNormalization"]
LAYOUTS = {  # the study's heads, layer by layer
    "i": ["Flatten", ("Dense", 512), ("Dropout", 0.2), ("Dense", 512), ("Dense", 29)],
    "ii": [
        *NORMALISED,
        ("Dense", 512, "l2"),
        ("Dropout", 0.3),
        ("Dense", 512, "l2"),
        ("Dense", 29),
    ],
    "iii": [*NORMALISED, L2, ("Dropout", 0.4), L2, L2, ("Dense", 29)],
}
COUNTS = {
    "fc": {
        "all": 12416,
        "conv": 4224,
        "last": 1472,
        "block5_conv3": 512,
        "fc2,block1_conv1": 4096 + 64,
    },
    "iii": {"all": 4992, "conv": 4224},
    "gap": {"all": 4224},
}
UNITS = {"fc": [4096, 4096, 29], "iii": [256, 256, 256, 29], "gap": [29]}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), "uint8")


def test_every_row_comes_once_with_its_label_and_a_part_batch_is_kept(images):
    source = common.Batches(images, np.arange(10), 4, seed=1)
    assert isinstance(source, keras.utils.PyDataset)
    items = [source[index] for index in range(len(source))]
    assert [len(labels) for _, labels in items] == [4, 4, 2]
    labels = np.concatenate([labels for _, labels in items])
    assert sorted(labels) == list(range(10))
    found = np.concatenate([x for x, _ in items])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[labels])


def test_shuffling_follows_seed_and_epoch_alone(images):
    def order(epoch=0, **settings):
        source = common.Batches(images, np.arange(10), 4, **settings)
        source.epoch = epoch
        return np.concatenate([source.rows(index) for index in range(len(source))]).tolist()

    assert order() == list(range(10))
    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert order(seed=1, epoch=1) != order(seed=1)
    source = common.Batches(images, np.arange(10), 4, seed=1)
    source[2]  # drawn out of order, twice, before the epoch ends
    source[2]
    source.on_epoch_end()
    assert np.concatenate([source.rows(i) for i in range(3)]).tolist() == order(seed=1, epoch=1)


def test_fit_takes_every_batch_of_every_epoch_in_its_turn(images):
    """However far an engine fetches ahead, it never takes a batch of one epoch for that of another."""
    taken = []

    class Recorded(common.Batches):
        def __getitem__(self, index):
            taken.append((self.epoch, index))
            return super().__getitem__(index)

    picture = keras.Input((32, 32, 3))
    model = keras.Model(
        picture, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(picture))
    )
    model.compile(loss="mse")
    batches = Recorded(images, np.zeros(10), 2, seed=1)
    batches.epoch = 4
    model.fit(batches, epochs=3, shuffle=False, verbose=0)
    # before them Keras looks at some to see their shapes, and says once that an epoch has ended
    assert taken[-15:] == [(epoch, index) for epoch in (5, 6, 7) for index in range(5)]


def test_a_network_takes_pictures_and_preprocesses_them_as_keras_does(images, narrow):
    model = common.build_model(32, 4, "gap")
    inside = keras.Model(model.input, model.get_layer("preprocessing").output)
    expected = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    np.testing.assert_array_equal(np.asarray(inside.predict_on_batch(images)), expected)
    batch, _ = common.Batches(images, np.arange(10), 10, augment={})[0]
    still = np.asarray(common.augmented_model(model).predict_on_batch(batch))
    np.testing.assert_allclose(still, np.asarray(model.predict_on_batch(images)), rtol=1e-5)


@pytest.mark.parametrize("head", ["iii", "multilayer"])
def test_a_saved_network_needs_none_of_this_code(images, narrow, tmp_path, head):
    """keras.saving.load_model in a process that imports nothing of ours, on plain uint8 pictures."""
    model = with_precision(common.build_model(32, 4, head, seed=0), "bfloat16")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = "import keras, numpy; model = keras.saving.load_model('model.keras', compile=False)\n"
    code += (
        "numpy.save('said.npy', model.predict(numpy.load('images.npy'), batch_size=10, verbose=0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = np.asarray(model.predict_on_batch(images))
    np.testing.assert_allclose(np.load(tmp_path / "said.npy"), expected, rtol=1e-3, atol=1e-5)


def test_augmentation_is_the_same_for_the_same_seed_epoch_and_row(images):
    def first(**settings):
        return common.Batches(images, np.arange(10), 10, augment=AUGMENTATION, **settings)[0][0]

    np.testing.assert_array_equal(first(seed=1)[0], first(seed=1)[0])
    np.testing.assert_array_equal(first(seed=1)[1], first(seed=1)[1])
    whole = common.Batches(images, np.arange(10), 10, seed=3, augment=AUGMENTATION)
    parts = common.Batches(images, np.arange(10), 3, seed=3, augment=AUGMENTATION)
    for number in range(2):  # the images, their maps
        joined = np.concatenate([parts[index][0][number] for index in range(len(parts))])
        np.testing.assert_array_equal(joined, whole[0][0][number])
    later = common.Batches(images, np.arange(10), 10, seed=3, augment=AUGMENTATION)
    later.on_epoch_end()
    ((_, one), rows), ((_, two), again) = whole[0], later[0]
    assert np.abs(one[np.argsort(rows)] - two[np.argsort(again)]).max(axis=1).min() > 0.01


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (25, 25)])
def test_geometry_equals_the_legacy_image_data_generator(shape, flip):
    legacy = pytest.importorskip("keras.src.legacy.preprocessing.image")
    oracle = legacy.ImageDataGenerator(fill_mode="nearest", data_format="channels_last")
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 255, (6, *shape, 3)).astype("float32")
    draws = [common.sample_augmentation(rng, *shape) | {"flip_horizontal": flip} for _ in x]
    ours = keras.ops.convert_to_numpy(common.warp_affine(x, common.affine_matrices(draws, *shape)))
    for image, draw, moved in zip(x, draws, ours):
        np.testing.assert_allclose(moved, oracle.apply_transform(image, draw), atol=0.05)


def test_draws_fill_the_studys_ranges():
    rng = np.random.default_rng(0)
    draws = [common.sample_augmentation(rng, 100, 200) for _ in range(2000)]
    limits = {
        "theta": (-20, 20),
        "tx": (-40, 40),
        "ty": (-20, 20),
        "zx": (0.8, 1.2),
        "zy": (0.8, 1.2),
    }
    for key, (low, high) in limits.items():
        values = np.array([draw[key] for draw in draws])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    assert np.corrcoef([d["zx"] for d in draws], [d["zy"] for d in draws])[0, 1] < 0.1
    assert 0.45 < np.mean([draw["flip_horizontal"] for draw in draws]) < 0.55


def describe(layer):
    kind = type(layer).__name__
    if kind == "Dense":
        return (kind, layer.units, *(["l2"] if layer.kernel_regularizer else []))
    return (kind, layer.rate) if kind == "Dropout" else kind


@pytest.mark.parametrize("head", LAYOUTS)
def test_heads_are_the_studys(head):
    model = common.build_model(32, 29, head, l2=0.01)
    names = [layer.name for layer in model.layers]
    layers = model.layers[names.index("block5_pool") + 1 :]
    assert [describe(layer) for layer in layers] == LAYOUTS[head]
    dense = [layer for layer in layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.name for layer in dense] == ["fc1", "fc2", "fc3"][: len(dense) - 1] + [
        "predictions"
    ]
    assert dense[-1].activation is keras.activations.softmax
    assert all(layer.activation is keras.activations.relu for layer in dense[:-1])
    if head != "i":
        assert float(dense[0].kernel_regularizer.l2) == pytest.approx(0.01)


@pytest.mark.parametrize("head", COUNTS)
def test_dense_layers_and_feature_counts(head):
    model = common.build_model(32, 29, head)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == UNITS[head]
    for layers, count in COUNTS[head].items():
        pooled, columns = common.feature_extractor(model, common.layer_names(model, layers))
        assert pooled.output_shape == (None, count), layers
        stops = [stop for _, stop in columns.values()]
        assert [start for start, _ in columns.values()] == [0, *stops[:-1]]
        assert stops[-1] == count


def test_pooled_values_equal_numpys_mean_of_the_raw_activations(images, narrow):
    model = common.build_model(32, 4, "iii")
    load_weights(model, "none", seed=0)
    names = common.layer_names(model, "all")
    pooled, columns = common.feature_extractor(model, names)
    features = pooled.predict_on_batch(images)
    raw = keras.Model(model.input, [model.get_layer(name).output for name in names])
    for name, activation in zip(names, raw.predict_on_batch(images)):
        activation = np.asarray(activation, dtype="float64")
        expected = activation.mean(axis=(1, 2)) if activation.ndim == 4 else activation
        ours = np.asarray(features)[:, slice(*columns[name])]
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-3)


def test_discretize_cuts_at_the_thresholds():
    values = np.array([[-3, -0.2501, -0.25, 0, 0.15, 0.1501, 3]])
    np.testing.assert_array_equal(common.discretize(values), [[-1, -1, 0, 0, 0, 1, 1]])
