"""devices.py: several devices and several workers train as one device does."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import ROOT

import common
from transfer import devices
from transfer.devices import Share
from transfer.screen import BadInput, WorkerLost

BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed"))
    for name in ("tensorflow", "jax")
]
TOLERANCE = 2e-4  # devices add their parts in another order


def start(folder, backend, name, *flags, ports=None, worker=0):
    """Start one process of `name` in `folder`; ports: those of all workers."""
    env = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    env |= {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    if ports:
        addresses = [f"127.0.0.1:{port}" for port in ports]
        task = {"type": "worker", "index": worker}
        env["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        env["KERAS_DISTRIBUTION_JOB_ADDRESSES"] = addresses[0]
        env["KERAS_DISTRIBUTION_NUM_PROCESSES"] = str(len(addresses))
        env["KERAS_DISTRIBUTION_PROCESS_ID"] = str(worker)
    command = [sys.executable, str(ROOT / f"{name}.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=env, **pipes)


def finish(*processes):
    """[(status, stdout, stderr)] of the processes."""
    outputs = [process.communicate(timeout=400) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs)]


def free_ports(count=2):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def train(folder, backend, run, *flags, workers=1):
    """The rows of history.csv of one training, whose first process prints what is returned with them."""
    ports = free_ports() if workers > 1 else None
    flags = [*flags, "--out", run, *["--workers"] * (workers > 1)]
    done = finish(*(start(folder, backend, *flags, ports=ports, worker=n) for n in range(workers)))
    assert [status for status, *_ in done] == [0] * workers, done[0][2][-2000:]
    return read_history(folder / run), done


def read_history(run):
    with open(run / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=TOLERANCE, abs=TOLERANCE), key


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_filled_up_with_rows_that_do_not_count(monkeypatch, workers):
    monkeypatch.setattr(common, "feeds_whole_batches", lambda: False)
    images = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3), dtype="uint8")
    labels = np.arange(10)
    whole = common.Batches(images, labels, 6)[1]
    parts = []
    for worker in range(workers):
        monkeypatch.setattr(common, "current_share", lambda w=worker: Share(3 * workers, workers, w))
        parts.append(common.Batches(images, labels, 6)[1])
    x, y, counts = (np.concatenate(columns) for columns in zip(*parts))
    assert len(y) == 6
    assert np.array_equal(x[:4], whole[0])
    assert y.tolist() == [6, 7, 8, 9, 6, 7]
    assert counts.tolist() == [1, 1, 1, 1, 0, 0]
    training = common.Batches(images, labels, 6, seed=0)
    assert sum(training[index][2].sum() for index in range(2)) == (12 if workers == 1 else 4.5)


def test_what_does_not_fit_is_named(tiny, workdir, script, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    flags = ("--data", tiny, "--head", "i")
    variable = "KERAS_DISTRIBUTION_JOB_ADDRESSES" if backend() == "jax" else "TF_CONFIG"
    if backend() == "torch":
        with pytest.raises(BadInput, match="shares no work out on torch"):
            script("finetune", *flags, "--devices", "2")
        return
    with pytest.raises(BadInput, match=f"--workers needs the environment variable {variable}"):
        script("finetune", *flags, "--workers")
    monkeypatch.setattr(devices, "current_share", lambda: Share(3))
    with pytest.raises(BadInput, match="--batch-size 16 .* a multiple of 3"):
        script("finetune", *flags)
    assert not (workdir / "runs").exists()


@pytest.mark.parametrize(
    ("found", "gpu", "share", "line"),
    [
        ([], None, Share(), "CPU, 3 threads (jax)"),
        (["NVIDIA H200"], "NVIDIA H200", Share(), "NVIDIA H200, 1 GPU (jax)"),
        (
            ["NVIDIA H200"] * 4,
            None,
            Share(2),
            "NVIDIA H200, 2 of 4 GPUs (jax); each batch is shared out among 2 devices",
        ),
        ([], "NVIDIA L4", Share(), "CPU, 3 threads (jax); there is an NVIDIA L4 that this jax cannot use"),
    ],
)
def test_what_it_computes_on_is_said(monkeypatch, found, gpu, share, line):
    monkeypatch.setattr(devices, "accelerators", lambda backend: found)
    monkeypatch.setattr(devices, "nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(devices, "cpu_threads", lambda: 3)
    assert devices.describe_devices("jax", share).startswith(line)


def test_a_full_disk_is_no_lost_worker():
    def fail_with(error, share):
        with devices.watching_workers(share):
            raise error

    with pytest.raises(OSError, match="No space left"):
        fail_with(OSError("No space left"), Share(2, 2, 0))
    with pytest.raises(WorkerLost, match="RuntimeError: connection closed"):
        fail_with(RuntimeError("connection closed"), Share(2, 2, 0))
    with pytest.raises(RuntimeError, match="connection closed"):
        fail_with(RuntimeError("connection closed"), Share())


def backend():
    import keras

    return keras.backend.backend()


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_devices_and_workers_train_as_one_device_does(tiny, tmp_path, name):
    """Every part of the network trains, with augmentation; no dropout, whose draws depend on the parts."""
    command = ("train_pretrained", "--data", tiny, "--top", "gap", "--augment", "--epochs", "1")
    one, _ = train(tmp_path, name, "one", *command)
    two, done = train(tmp_path, name, "two", *command, "--devices", "2")
    assert "shared out among 2 devices" in done[0][1]
    assert_same(two, one)
    workers, done = train(tmp_path, name, "workers", *command, workers=2)
    assert "worker 0 prints and records this run" in done[1][1]
    assert_same(workers, one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "one", "two", "workers"]
    for run in ("two", "workers"):
        files = sorted(path.name for path in (tmp_path / run).iterdir())
        assert files == sorted(path.name for path in (tmp_path / "one").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_batch_normalisation_sees_the_whole_batch_on_several_devices(tiny, tmp_path, name):
    """The dense step of the layer-wise head, on activations that are kept."""
    from transfer.weights import load_model

    command = ("finetune", "--data", tiny, "--head", "layers", "--epochs", "1")
    averages = []
    for number in ("1", "2"):
        train(tmp_path, name, number, *command, "--devices", number)
        layer = load_model(tmp_path / number).get_layer("batch_normalization")
        assert not layer.synchronized
        averages.append(layer.get_weights()[2:])
    for one, two in zip(*averages):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_features_are_the_same_on_several_devices(tiny, tmp_path, name):
    command = ("extract_features", "--data", tiny, "--layers", "last", "--splits", "test")
    found = []
    for number in ("1", "4"):  # 22 pictures: the last batch is filled up
        process = start(tmp_path, name, *command, "--out", number, "--devices", number)
        ((status, _, errors),) = finish(process)
        assert status == 0, errors[-2000:]
        found.append(np.load(tmp_path / number / "test.npy"))
    assert found[0].shape == (22, 1472)
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_three_workers_extract_what_one_does_though_one_is_killed(tiny, tmp_path, name):
    command = ("extract_features", "--data", tiny, "--batch-size", "2")
    ((status, _, errors),) = finish(start(tmp_path, name, *command, "--out", "alone"))
    assert status == 0, errors[-2000:]
    ports = free_ports(3)
    flags = (*command, "--out", "shared", "--workers")
    workers = [start(tmp_path, name, *flags, ports=ports, worker=number) for number in range(3)]
    piece = tmp_path / "shared" / "train-3-of-3.npy.part"
    limit = time.monotonic() + 200
    while not piece.exists() and workers[2].poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    workers[2].send_signal(signal.SIGKILL)
    for status, _, errors in finish(*workers)[:2]:
        assert status == 0, errors[-2000:]
    for split in ("train", "val", "test"):
        for file in (f"{split}.npy", f"{split}.csv"):
            assert (tmp_path / "shared" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()
    assert not list((tmp_path / "shared").glob("*-of-3*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_workers_train_on_activations_that_they_made_together(tiny, tmp_path, name):
    command = ("finetune", "--data", tiny, "--head", "layers", "--epochs", "2", "--batch-size", "4")
    kept = []
    for workers in (1, 2):
        cache = tmp_path / f"cache-{workers}"
        history, _ = train(tmp_path, name, f"of-{workers}", *command, "--cache", cache, workers=workers)
        kept.append({path.name: path.read_bytes() for path in sorted(cache.glob("*-features-*.npy"))})
        if workers == 1:
            alone = history
    assert_same(history, alone)
    assert len(kept[0]) == 2
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"cluster": {"worker": ["a:1"]}}', "does not say what the workers are"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"index": 1}}', "names worker 1 of 1"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}', None),
    ],
)
def test_the_environment_names_the_workers(monkeypatch, config, message):
    if backend() != "tensorflow":
        pytest.skip("TF_CONFIG is TensorFlow's")
    monkeypatch.setenv("TF_CONFIG", config)
    if message is None:
        assert devices.share_of_environment() == Share(workers=2, worker=1)
        return
    with pytest.raises(BadInput, match=message):
        devices.share_of_environment()


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKENDS)
def test_a_worker_that_dies_ends_the_run_which_resumes(tiny, tmp_path, name):
    command = ("finetune", "--data", tiny, "--head", "i", "--augment", "--epochs", "4")
    whole, _ = train(tmp_path, name, "whole", *command, workers=2)
    ports = free_ports()
    flags = (*command, "--workers", "--out", "run")
    workers = [start(tmp_path, name, *flags, ports=ports, worker=number) for number in range(2)]
    limit = time.monotonic() + 200
    while not (tmp_path / "run" / "history.csv").exists():
        assert time.monotonic() < limit and workers[0].poll() is None
        time.sleep(0.05)
    workers[1].send_signal(signal.SIGKILL)
    (status, _, errors), _ = finish(*workers)
    epochs = len(read_history(tmp_path / "run"))
    if epochs < 4:
        assert status == 2
        assert errors.count("another worker does not answer any more") == 1
        assert "Traceback" not in errors
    resumed, done = train(tmp_path, name, "run", *command, workers=2)
    assert f"{epochs} epochs are finished" in done[0][1]
    assert resumed == whole
