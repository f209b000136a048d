"""Batches, augmentation, VGG16 and its heads, weights, pooling: common.py."""

import threading

import h5py
import keras
import numpy as np
import pytest

import common
from transfer import weights
from transfer.fitting import Feed
from transfer.inputs import move_pixels, on_images
from transfer.screen import BadInput
from transfer.study import AUGMENTATION


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3), "uint8")


# Batches ---------------------------------------------------------------------------------


def test_every_row_comes_once_with_its_label_and_a_part_batch_is_kept(images):
    source = Feed(common.Batches(images, np.arange(10), 4, seed=1))
    assert isinstance(source, keras.utils.PyDataset)
    items = [source[index] for index in range(len(source))]
    assert [len(labels) for _, labels in items] == [4, 4, 2]
    labels = np.concatenate([labels for _, labels in items])
    assert sorted(labels) == list(range(10))
    found = np.concatenate([x for x, _ in items])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, images[labels])


def test_shuffling_follows_seed_and_epoch_alone(images):
    def order(**settings):
        source = common.Batches(images, np.arange(10), 4, **settings)
        return np.concatenate([source.rows(index) for index in range(len(source))]).tolist()

    assert order() == list(range(10))
    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert order(seed=1, epoch=1) != order(seed=1)
    source = common.Batches(images, np.arange(10), 4, seed=1)
    source[2]  # drawn out of order, twice, before the epoch ends
    source[2]
    Feed(source).on_epoch_end()
    assert np.concatenate([source.rows(i) for i in range(3)]).tolist() == order(seed=1, epoch=1)


def test_fit_takes_every_batch_of_every_epoch_in_its_turn(images):
    """However far an engine fetches ahead, it never takes a batch of one epoch for that of another."""
    taken = []

    class Recorded(common.Batches):
        def __getitem__(self, index):
            taken.append((self.epoch, index))
            return super().__getitem__(index)

    picture = keras.Input((32, 32, 3))
    outputs = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(picture))
    model = on_images(keras.Model(picture, outputs))
    model.compile(loss="mse")
    model.fit(Feed(Recorded(images, np.zeros(10), 2, seed=1, epoch=4)), epochs=3, shuffle=False, verbose=0)
    # before them Keras looks at some to see their shapes, and says once that an epoch has ended
    assert taken[-15:] == [(epoch, index) for epoch in (5, 6, 7) for index in range(5)]


def test_the_next_one_is_made_while_one_is_used():
    begun, go_on = [threading.Event() for _ in range(4)], threading.Event()

    def make(index):
        begun[index].set()
        if index == 3:
            assert go_on.wait(60)
            raise BadInput("3")
        return 10 * index

    ahead = common.OneAhead(make, 4)
    assert ahead[1] == 10  # one may begin anywhere
    assert begun[2].wait(60) and not begun[3].is_set()
    assert ahead[2] == 20
    assert begun[3].wait(60)
    go_on.set()
    with pytest.raises(BadInput):
        ahead[3]


def test_what_a_network_gets_is_keras_own_preprocessing(images):
    picture = keras.Input((32, 32, 3))
    network = on_images(keras.Model(picture, keras.layers.Identity()(picture)))
    expected = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    np.testing.assert_array_equal(np.asarray(network.predict_on_batch(images)), expected)
    still = on_images(keras.Model(picture, keras.layers.Identity()(picture)), augmented=True)
    batch, _ = common.Batches(images, np.arange(10), 10, augment={})[0]
    np.testing.assert_array_equal(np.asarray(still.predict_on_batch(batch)), expected)


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
    later = common.Batches(images, np.arange(10), 10, seed=3, epoch=1, augment=AUGMENTATION)
    ((_, one), rows), ((_, two), again) = whole[0], later[0]
    assert np.abs(one[np.argsort(rows)] - two[np.argsort(again)]).max(axis=1).min() > 0.01


# Augmentation ----------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(32, 32), (25, 25)])
def test_geometry_equals_the_legacy_image_data_generator(shape, flip):
    legacy = pytest.importorskip("keras.src.legacy.preprocessing.image")
    oracle = legacy.ImageDataGenerator(fill_mode="nearest", data_format="channels_last")
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 255, (6, *shape, 3)).astype("float32")
    draws = [common.draw_augmentation(rng, *shape) | {"flip_horizontal": flip} for _ in x]
    ours = keras.ops.convert_to_numpy(move_pixels(x, common.affine_maps(draws, *shape)))
    for image, draw, moved in zip(x, draws, ours):
        np.testing.assert_allclose(moved, oracle.apply_transform(image, draw), atol=0.05)


def test_draws_fill_the_studys_ranges():
    rng = np.random.default_rng(0)
    draws = [common.draw_augmentation(rng, 100, 200) for _ in range(2000)]
    limits = {"theta": (-20, 20), "tx": (-40, 40), "ty": (-20, 20), "zx": (0.8, 1.2), "zy": (0.8, 1.2)}
    for key, (low, high) in limits.items():
        values = np.array([draw[key] for draw in draws])
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    assert np.corrcoef([d["zx"] for d in draws], [d["zy"] for d in draws])[0, 1] < 0.1
    assert 0.45 < np.mean([draw["flip_horizontal"] for draw in draws]) < 0.55


# Heads -----------------------------------------------------------------------------------

LAYOUTS = {  # the study's heads, layer by layer
    "i": ["Flatten", ("Dense", 512), ("Dropout", 0.2), ("Dense", 512), ("Dense", 29)],
    "ii": [
        "Flatten",
        "BatchNormalization",
        ("Dense", 512, "l2"),
        ("Dropout", 0.3),
        ("Dense", 512, "l2"),
        ("Dense", 29),
    ],
    "iii": [
        "Flatten",
        "BatchNormalization",
        ("Dense", 256, "l2"),
        ("Dropout", 0.4),
        ("Dense", 256, "l2"),
        ("Dense", 256, "l2"),
        ("Dense", 29),
    ],
}


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
    assert [layer.name for layer in dense] == ["fc1", "fc2", "fc3"][: len(dense) - 1] + ["predictions"]
    assert dense[-1].activation is keras.activations.softmax
    assert all(layer.activation is keras.activations.relu for layer in dense[:-1])
    if head != "i":
        assert float(dense[0].kernel_regularizer.l2) == pytest.approx(0.01)


def test_flattened_block5_pool_has_25088_values_at_224():
    model = common.build_model(224, 29, "iii")
    assert model.get_layer("flatten").output.shape == (None, 25088)


def test_splitting_shares_the_layers_and_their_results(images, narrow):
    model = common.build_model(32, 4, "iii")
    lower, upper = common.split_model(model, "block5_pool")
    x = images.astype("float32")
    joined = upper.predict_on_batch(lower.predict_on_batch(x))
    np.testing.assert_allclose(joined, model.predict_on_batch(x), rtol=1e-5, atol=1e-6)
    assert upper.get_layer("fc1") is model.get_layer("fc1")


# Weights ---------------------------------------------------------------------------------


def write_official(path, model, with_top, change=None):
    """The layout of the official Keras .h5 files: groups by layer, names in attributes."""
    with h5py.File(path, "w") as file:
        names = []
        for layer in model.layers:
            if not with_top and "_conv" not in layer.name and layer.weights:
                continue
            names.append(layer.name.encode())
            group = file.create_group(layer.name)
            arrays = layer.get_weights()
            if change and layer.name == change[0]:
                arrays = change[1](arrays)
            keys = [f"{layer.name}/{layer.name}_{kind}_1:0" for kind in "Wb"][: len(arrays)]
            group.attrs["weight_names"] = [key.encode() for key in keys]
            for key, array in zip(keys, arrays):
                group.create_dataset(key, data=array)
        file.attrs["layer_names"] = names


@pytest.fixture
def pretrained(narrow):
    """A network with fc1, fc2 and predictions, as the official one has."""
    model = common.build_model(32, 4, "i")
    weights.load_weights(model, "none", seed=7)
    return model


@pytest.mark.parametrize("with_top", [True, False])
def test_official_h5_files_load_with_and_without_top(pretrained, tmp_path, with_top):
    path = tmp_path / "vgg16.h5"
    write_official(path, pretrained, with_top)
    model = common.build_model(32, 4, "iii")
    weights.load_weights(model, str(path), seed=0)
    assert len(common.convolutions(model)) == 13
    for name in common.convolutions(model):
        for ours, theirs in zip(
            model.get_layer(name).get_weights(), pretrained.get_layer(name).get_weights()
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_imagenet_weights_come_from_keras_applications(monkeypatch, tmp_path):
    original = common.build_model(32, 4, "gap")
    weights.load_weights(original, "none", seed=7)
    path = tmp_path / "notop.h5"
    write_official(path, original, with_top=False)
    asked = []

    def get_file(name, url, **_):
        asked.append(url)
        return str(path)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    model = common.build_model(32, 4, "gap")
    weights.load_weights(model, "imagenet", seed=0)
    assert asked[0].endswith("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    np.testing.assert_array_equal(
        model.get_layer("block5_conv3").get_weights()[0],
        original.get_layer("block5_conv3").get_weights()[0],
    )


def test_a_failed_download_names_the_mend(monkeypatch):
    def get_file(*_, **__):
        raise Exception("URL fetch failure")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(BadInput, match="--weights none"):
        weights.load_weights(common.build_model(32, 4, "gap"), "imagenet", seed=0)


def test_a_mismatch_is_refused_by_layer_and_shape(pretrained, tmp_path):
    model = common.build_model(32, 4, "gap")
    before = model.get_layer("block1_conv1").get_weights()[0]
    path = tmp_path / "a.h5"
    write_official(path, pretrained, False, ("block3_conv2", lambda a: [a[0][..., :7], a[1]]))
    with pytest.raises(BadInput, match=r"block3_conv2.*\(3, 3, 32, 7\).*\(3, 3, 32, 32\)"):
        weights.load_weights(model, str(path), seed=0)
    np.testing.assert_array_equal(model.get_layer("block1_conv1").get_weights()[0], before)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save(tmp_path / "other.keras")
    with pytest.raises(BadInput, match="no layer block1_conv1"):
        weights.load_weights(model, str(tmp_path / "other.keras"), seed=0)


@pytest.mark.parametrize("name", ["absent.h5", "absent.keras", "broken.h5", "broken.keras"])
def test_an_absent_or_broken_file_is_named(tmp_path, narrow, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(BadInput, match=name):
        weights.load_weights(common.build_model(32, 4, "gap"), str(tmp_path / name), seed=0)


def test_new_weights_are_he_normal_and_follow_the_seed():
    model = common.build_model(32, 4, "gap")
    weights.load_weights(model, "none", seed=3)
    kernel, bias = model.get_layer("block4_conv2").get_weights()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert not bias.any()
    weights.load_weights(model, "none", seed=4)
    assert np.any(model.get_layer("block4_conv2").get_weights()[0] != kernel)
    weights.load_weights(model, "none", seed=3)
    np.testing.assert_array_equal(model.get_layer("block4_conv2").get_weights()[0], kernel)


# Pooling ---------------------------------------------------------------------------------


COUNTS = {
    "fc": {"all": 12416, "conv": 4224, "last": 1472, "block5_conv3": 512, "fc2,block1_conv1": 4096 + 64},
    "iii": {"all": 4992, "conv": 4224},
    "gap": {"all": 4224},
}
UNITS = {"fc": [4096, 4096, 29], "iii": [256, 256, 256, 29], "gap": [29]}


@pytest.mark.parametrize("head", COUNTS)
def test_dense_layers_and_feature_counts(head):
    model = common.build_model(32, 29, head)
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == UNITS[head]
    for layers, count in COUNTS[head].items():
        pooled, columns = common.pooled_model(model, common.feature_layers(model, layers))
        assert pooled.output_shape == (None, count), layers
        stops = [stop for _, stop in columns.values()]
        assert [start for start, _ in columns.values()] == [0, *stops[:-1]]
        assert stops[-1] == count


def test_an_unknown_layer_is_named_with_the_known_ones(narrow):
    model = common.build_model(32, 29, "iii")
    with pytest.raises(BadInput, match="'block9_conv1'.*block5_conv3, fc1, fc2, fc3"):
        common.feature_layers(model, "block9_conv1")


def test_pooled_values_equal_numpys_mean_of_the_raw_activations(images, narrow):
    model = common.build_model(32, 4, "iii")
    weights.load_weights(model, "none", seed=0)
    names = common.feature_layers(model, "all")
    pooled, columns = common.pooled_model(model, names)
    x = keras.applications.vgg16.preprocess_input(images.astype("float32"))
    features = pooled.predict_on_batch(x)
    raw = keras.Model(model.input, [model.get_layer(name).output for name in names])
    for name, activation in zip(names, raw.predict_on_batch(x)):
        activation = np.asarray(activation, dtype="float64")
        expected = activation.mean(axis=(1, 2)) if activation.ndim == 4 else activation
        ours = np.asarray(features)[:, slice(*columns[name])]
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=1e-3)


def test_discretise_cuts_at_the_thresholds():
    values = np.array([[-3, -0.2501, -0.25, 0, 0.15, 0.1501, 3]])
    np.testing.assert_array_equal(common.discretise(values), [[-1, -1, 0, 0, 0, 1, 1]])
