"""Weights in and out, precision, devices and processes: py."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT, read_rows

import common
from transfer.console import BadInput
from transfer.study import FIGURES
from transfer.weights import input_size, load_model, load_weights

BACKENDS = [
    pytest.param(
        name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")
    )
    for name in ("tensorflow", "jax")
]
TOLERANCE = 2e-4  # devices add their parts in another order


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
    load_weights(model, "none", seed=7)
    return model


@pytest.mark.parametrize("with_top", [True, False])
def test_official_h5_files_load_with_and_without_top(pretrained, tmp_path, with_top):
    path = tmp_path / "vgg16.h5"
    write_official(path, pretrained, with_top)
    model = common.build_model(32, 4, "iii")
    load_weights(model, str(path), seed=0)
    assert len(common.convolutions(model)) == 13
    for name in common.convolutions(model):
        for ours, theirs in zip(
            model.get_layer(name).get_weights(), pretrained.get_layer(name).get_weights()
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_imagenet_weights_come_from_keras_applications(monkeypatch, tmp_path):
    original = common.build_model(32, 4, "gap")
    load_weights(original, "none", seed=7)
    path = tmp_path / "notop.h5"
    write_official(path, original, with_top=False)
    asked = []

    def get_file(name, url, **_):
        asked.append(url)
        return str(path)

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    model = common.build_model(32, 4, "gap")
    load_weights(model, "imagenet", seed=0)
    assert asked[0].endswith("vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5")
    np.testing.assert_array_equal(
        model.get_layer("block5_conv3").get_weights()[0],
        original.get_layer("block5_conv3").get_weights()[0],
    )


def test_a_mismatch_is_refused_by_layer_and_shape(pretrained, tmp_path):
    model = common.build_model(32, 4, "gap")
    before = model.get_layer("block1_conv1").get_weights()[0]
    path = tmp_path / "a.h5"
    write_official(path, pretrained, False, ("block3_conv2", lambda a: [a[0][..., :7], a[1]]))
    with pytest.raises(BadInput, match=r"block3_conv2.*\(3, 3, 32, 7\).*\(3, 3, 32, 32\)"):
        load_weights(model, str(path), seed=0)
    np.testing.assert_array_equal(model.get_layer("block1_conv1").get_weights()[0], before)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save(tmp_path / "other.keras")
    with pytest.raises(BadInput, match="holds no VGG16"):
        load_weights(model, str(tmp_path / "other.keras"), seed=0)


@pytest.mark.parametrize("name", ["absent.h5", "absent.keras", "broken.h5", "broken.keras"])
def test_an_absent_or_broken_file_is_named(tmp_path, narrow, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not a model")
    with pytest.raises(BadInput, match=name):
        load_weights(common.build_model(32, 4, "gap"), str(tmp_path / name), seed=0)


def test_new_weights_are_he_normal_and_follow_the_seed():
    model = common.build_model(32, 4, "gap")
    load_weights(model, "none", seed=3)
    kernel, bias = model.get_layer("block4_conv2").get_weights()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 512)), rel=0.01)
    assert not bias.any()
    load_weights(model, "none", seed=4)
    assert np.any(model.get_layer("block4_conv2").get_weights()[0] != kernel)
    load_weights(model, "none", seed=3)
    np.testing.assert_array_equal(model.get_layer("block4_conv2").get_weights()[0], kernel)


def start(folder, backend, name, *flags, process=None, port=None):
    """Start `name` in `folder`; as one of two processes that train together where `process` is given."""
    env = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    if process is not None:
        together = {
            "JOB_ADDRESSES": f"127.0.0.1:{port}",
            "NUM_PROCESSES": "2",
            "PROCESS_ID": str(process),
        }
        env |= {f"KERAS_DISTRIBUTION_{key}": value for key, value in together.items()}
        flags = (*flags, "--processes")
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, **pipes)


def start_two(folder, *flags):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return [start(folder, "jax", *flags, process=number, port=port) for number in range(2)]


def finish(*processes):
    """What the processes printed; all of them end well."""
    outputs = [process.communicate(timeout=400) for process in processes]
    for process, (_, errors) in zip(processes, outputs):
        assert process.returncode == 0, errors[-2000:]
    return [output for output, _ in outputs]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        for key in FIGURES:
            assert float(one[key]) == pytest.approx(
                float(other[key]), rel=TOLERANCE, abs=TOLERANCE
            ), key


@pytest.mark.parametrize("processes", [1, 2])
def test_batches_are_filled_up_with_rows_that_do_not_count(processes):
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), dtype="uint8")
    whole, parts = common.Batches(images, np.arange(10), 6)[1], []
    for process in range(processes):
        share = common.Share(3 * processes, processes, process)
        parts.append(common.Batches(images, np.arange(10), 6, share=share)[1])
    training = common.Batches(images, np.arange(10), 6, seed=0, share=share)
    x, y, weights = (np.concatenate(columns) for columns in zip(*parts))
    assert np.array_equal(x[:4], whole[0])
    assert y.tolist() == [6, 7, 8, 9, 6, 7]
    assert weights.tolist() == [1, 1, 1, 1, 0, 0]
    assert sum(training[index][2].sum() for index in range(2)) == (12 if processes == 1 else 4.5)


def test_what_does_not_fit_is_named(tiny, workdir, script, monkeypatch):
    backend, flags = keras.backend.backend(), ("--data", tiny, "--head", "i")
    if backend != "jax":
        with pytest.raises(BadInput, match=f"--processes does not work on {backend}; use"):
            script("finetune", *flags, "--processes")
    monkeypatch.setattr("transfer.devices.current_share", lambda: common.Share(3))
    with pytest.raises(BadInput, match="--batch-size 16: choose a multiple of 3"):
        script("finetune", *flags)
    assert not (workdir / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_two_devices_train_as_one_does(tiny, tmp_path, name):
    """Every part of the network trains, with augmentation; no dropout, whose draws depend on the parts."""
    command = ("train_pretrained", "--data", tiny, "--top", "gap", "--augment", "--epochs", "1")
    finish(start(tmp_path, name, *command, "--out", "one"))
    (output,) = finish(start(tmp_path, name, *command, "--out", "two", "--devices", "2"))
    assert "shared out among 2 devices" in output
    assert_same(
        read_rows(tmp_path / "two" / "history.csv"), read_rows(tmp_path / "one" / "history.csv")
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jax") is None, reason="jax is not installed")
def test_two_processes_train_as_one_does_and_resume(tiny, tmp_path):
    """Once left alone, and once both killed after the first epoch: the same figures."""
    command = (
        "train_pretrained",
        "--data",
        tiny,
        "--top",
        "gap",
        "--augment",
        "--epochs",
        "3",
        "--out",
    )
    finish(start(tmp_path, "jax", *command, "one"))
    first, second = finish(*start_two(tmp_path, *command, "two"))
    assert "of 2 processes" in first and "process 0 records this run" in second
    whole = read_rows(tmp_path / "two" / "history.csv")
    # later epochs amplify the order of sums
    assert_same(whole[:1], read_rows(tmp_path / "one" / "history.csv")[:1])
    names = [sorted(path.name for path in (tmp_path / run).iterdir()) for run in ("one", "two")]
    assert names[0] == names[1]
    processes, limit = start_two(tmp_path, *command, "killed"), time.monotonic() + 200
    while not (tmp_path / "killed" / "history.csv").exists():
        assert time.monotonic() < limit and processes[0].poll() is None
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.communicate()
    if (tmp_path / "killed" / "resume").exists():
        finish(*start_two(tmp_path, *command, "killed"))
    assert read_rows(tmp_path / "killed" / "history.csv") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_batch_normalisation_sees_the_whole_batch_on_several_devices(tiny, tmp_path, name):
    """The dense stage of the layer-wise head, on activations that are kept."""
    averages = []
    for number in ("1", "2"):
        flags = ("--data", tiny, "--head", "multilayer", "--epochs", "1", "--out", number)
        finish(start(tmp_path, name, "finetune", *flags, "--devices", number))
        layer = load_model(tmp_path / number).get_layer("batch_normalization")
        assert not layer.synchronized
        averages.append(layer.get_weights()[2:])
    for one, two in zip(*averages):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


def pretrained_as(path, model, other):
    """Save the convolutions of `model` in another form; `other` is a network of VGG19's layers."""
    name = path.name
    if name in ("a.hdf5", "A.H5"):
        write_official(path, model, with_top=False)
    elif name == "a.weights.h5":
        model.save_weights(path)
    elif name in ("nested.keras", "nested.h5"):
        inner = keras.Model(model.input, model.get_layer("block5_pool").output, name="vgg16")
        keras.Sequential([inner, keras.layers.Flatten(), keras.layers.Dense(3)]).save(path)
    elif name == "nested.weights.h5":
        keras.Sequential([keras.Input((32, 32, 3)), model, keras.layers.Dense(3)]).save_weights(
            path
        )
    else:
        (other.save_weights if name == "vgg19.weights.h5" else other.save)(path)


FORMS = ["a.hdf5", "A.H5", "a.weights.h5", "nested.keras", "nested.h5", "nested.weights.h5"]


@pytest.mark.parametrize("name", [*FORMS, "vgg19.keras", "vgg19.h5", "vgg19.weights.h5"])
def test_vgg16_is_read_in_every_form_and_nothing_else_for_it(pretrained, tmp_path, name):
    x = pretrained.get_layer("block3_conv3").output
    x = keras.layers.Conv2D(32, 3, padding="same", name="block3_conv4")(x)
    for layer in pretrained.layers[
        [layer.name for layer in pretrained.layers].index("block3_pool") :
    ]:
        x = layer(x)
    pretrained_as(tmp_path / name, pretrained, keras.Model(pretrained.input, x))
    model = common.build_model(32, 4, "gap")
    if name.startswith("vgg19"):
        with pytest.raises(
            BadInput, match=r"vgg19.* holds no VGG16 \(14 convolutions, not its 13\)"
        ):
            load_weights(model, str(tmp_path / name), seed=0)
        return
    load_weights(model, str(tmp_path / name), seed=0)
    for layer in common.convolutions(model):
        kernels = (each.get_layer(layer).get_weights() for each in (model, pretrained))
        for ours, theirs in zip(*kernels):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["a.h5", "a.keras"])
def test_a_truncated_file_says_so(pretrained, tmp_path, name):
    pretrained.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(BadInput, match=f"{name} is truncated"):
        load_weights(common.build_model(32, 4, "gap"), str(tmp_path / name), seed=0)


@pytest.mark.parametrize("name", ["a.h5", "a.keras"])
def test_weights_that_are_no_numbers_are_refused(pretrained, tmp_path, name):
    bias = pretrained.get_layer("block2_conv1").bias
    bias.assign(np.full(bias.shape, np.nan))
    pretrained.save(tmp_path / name)
    with pytest.raises(BadInput, match=r"no numbers \(NaN\): its training diverged"):
        load_weights(common.build_model(32, 4, "gap"), str(tmp_path / name), seed=0)


def test_a_network_of_someone_elses_gives_its_convolutions_with_our_preprocessing(
    pretrained, tmp_path
):
    from transfer.features import FeatureSpec, build_network

    pretrained_as(tmp_path / "nested.keras", pretrained, None)
    model = build_network(FeatureSpec(str(tmp_path / "nested.keras"), "conv", 32, 0, "float32"))
    assert input_size(tmp_path / "nested.keras") is None
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype("float32")
    outputs = [keras.Model(m.input, m.get_layer("block5_pool").output) for m in (model, pretrained)]
    ours, theirs = (np.asarray(m.predict_on_batch(images)) for m in outputs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
