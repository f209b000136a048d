"""Several devices and processes: devices.py."""

import os
import socket
import subprocess
import sys
import time
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from conftest import ROOT, read_rows

import common
from transfer import devices
from transfer.console import BadInput
from transfer.study import FIGURES
from transfer.weights import load_model

on_jax = pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed")
TOLERANCE = 2e-4  # devices add their parts in another order


def start(folder, *command, **settings):
    """Start a script with its flags in `folder`, on JAX. settings: more of the environment."""
    script, *flags = map(str, command)
    return subprocess.Popen(
        [sys.executable, str(ROOT / f"{script}.py"), *flags],
        cwd=folder,
        env=os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(folder, *command):
    """Start two processes that train together."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    together = {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    return [
        start(folder, *command, "--processes", **together, KERAS_DISTRIBUTION_PROCESS_ID=n)
        for n in "01"
    ]


def finish(*processes):
    """What the processes printed; all of them end well."""
    outputs = [process.communicate(timeout=400) for process in processes]
    assert not any(process.returncode for process in processes), outputs
    return [output for output, _ in outputs]


def read_figures(run):
    """The figures of each epoch of a run, float (epochs, figures)."""
    return np.array(
        [[float(row[key]) for key in FIGURES] for row in read_rows(run / "history.csv")]
    )


@pytest.mark.parametrize(("seed", "weight"), [(None, 1), (0, 1.5)])
def test_batches_are_filled_up_with_rows_that_do_not_count(seed, weight):
    """In training the others count for them, as its loss is a mean over all rows."""
    rows = np.arange(10)
    shares = [common.Share(6, 2, process) for process in range(2)]
    parts = [common.Batches(rows, rows, 6, seed, share=share)[1] for share in shares]
    x, y, weights = map(np.concatenate, zip(*parts))
    last = common.order_of_rows(10, seed, 0)[6:]
    assert x.tolist() == y.tolist() == [*last, *last[:2]]
    assert weights.tolist() == [weight, weight, weight, weight, 0, 0]


def test_what_does_not_fit_is_named(tiny, workdir, script, monkeypatch):
    flags = ("--data", tiny, "--head", "i")
    backend = keras.backend.backend()
    if backend != "jax":
        for given in (["--processes"], ["--devices", "2"]):
            with pytest.raises(BadInput, match=f"{given[0]} does not work on {backend}; use"):
                script("finetune", *flags, *given)

    monkeypatch.setattr(devices, "current_share", lambda: common.Share(3))
    with pytest.raises(BadInput, match="--batch-size 16: choose a multiple of 3"):
        script("finetune", *flags)


@pytest.mark.parametrize(
    ("flags", "gpus", "said"),
    [
        ("flags: avx512f avx512_bf16", [], False),
        ("Features: asimd bf16", [], False),
        ("flags: avx512f", [], True),
        ("flags: avx512f", ["H200"], False),
    ],
)
def test_a_cpu_that_is_slow_in_bfloat16_is_said(tmp_path, monkeypatch, capsys, flags, gpus, said):
    monkeypatch.setattr(devices, "CPU_INFO", tmp_path / "cpuinfo")
    devices.CPU_INFO.write_text(flags)
    monkeypatch.setattr(devices, "accelerators", lambda: gpus)

    devices.warn_of_precision("float32")
    devices.warn_of_precision("bfloat16")
    assert capsys.readouterr().out.count("leave out --precision bfloat16") == said


def train_twice(folder, *command):
    """Train in folder/1 on one device and in folder/2 on two; what was printed then."""
    for number in ("1", "2"):
        flags = ("--epochs", "1", "--out", number, "--devices", number)
        (output,) = finish(start(folder, *command, *flags))
    return output


@pytest.mark.slow
@on_jax
def test_two_devices_train_as_one_does(tiny, tmp_path):
    """Every part of the network trains, with augmentation; no dropout, which depends on the
    parts."""
    command = ("train_pretrained", "--data", tiny, "--top", "gap", "--augment")
    assert "shared out among 2 devices" in train_twice(tmp_path, *command)

    one = read_figures(tmp_path / "1")
    np.testing.assert_allclose(read_figures(tmp_path / "2"), one, TOLERANCE, TOLERANCE)


@pytest.mark.slow
@on_jax
def test_two_processes_train_as_one_does_and_resume(tiny, tmp_path):
    """Once left alone, and once both killed after the first epoch: the same figures."""
    command = ("train_pretrained", "--data", tiny, "--top", "gap", "--augment", "--epochs", "3")
    finish(start(tmp_path, *command, "--out", "one"))
    first, second = finish(*start_two(tmp_path, *command, "--out", "two"))
    assert "among 2 devices (processes: 2)" in first
    assert "process 0 records this run" in second

    one, two = tmp_path / "one", tmp_path / "two"
    whole = read_figures(two)
    # later epochs amplify the order of sums
    np.testing.assert_allclose(whole[:1], read_figures(one)[:1], TOLERANCE, TOLERANCE)
    assert sorted(os.listdir(two)) == sorted(os.listdir(one))

    killed = tmp_path / "killed"
    processes = start_two(tmp_path, *command, "--out", killed)
    limit = time.monotonic() + 400
    while not (killed / "history.csv").exists():
        assert time.monotonic() < limit
        assert processes[0].poll() is None
        time.sleep(0.05)

    for process in processes:
        process.kill()
        process.communicate()

    if (killed / "resume").exists():
        finish(*start_two(tmp_path, *command, "--out", killed))
    np.testing.assert_array_equal(read_figures(killed), whole)


@pytest.mark.slow
@on_jax
def test_batch_normalisation_sees_the_whole_batch_on_several_devices(tiny, tmp_path):
    """The dense stage of the layer-wise head, on activations that are cached."""
    train_twice(tmp_path, "finetune", "--data", tiny, "--head", "multilayer")

    def statistics(run):
        layer = load_model(tmp_path / run).get_layer("batch_normalization")
        return np.concatenate(layer.get_weights()[2:])

    np.testing.assert_allclose(statistics("2"), statistics("1"), rtol=1e-3, atol=1e-5)
