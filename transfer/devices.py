"""The devices and processes that share the work.

    one machine        keras.distribution.DataParallel over all its devices
    several machines   processes that keras.distribution.initialize brings together

Both are JAX's alone, as Keras' distribution is; TensorFlow and PyTorch compute on one device. Each
batch is shared out evenly and gradients are averaged: the same training as on one device.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple

import joblib

from transfer.backend import CHOICES, keras
from transfer.console import BadInput

CPU_INFO = Path("/proc/cpuinfo")  # Linux: what instructions the processor has, among others


class Share(NamedTuple):
    """What of each batch this process computes."""

    replicas: int = 1  # devices of all processes together
    processes: int = 1
    process: int = 0  # 0 records the run


@contextlib.contextmanager
def on_devices(devices, batch_size, processes=False):
    """Within it, networks are built for and trained on the devices that --devices and --processes
    name. Call it before anything is computed. Yields (Share, one line on what computes). BadInput
    for misfits."""
    backend = keras.backend.backend()
    several = processes or devices not in (None, 1)
    if several and backend != "jax":
        flag = "--processes" if processes else "--devices"
        raise BadInput(
            f"{flag} does not work on {backend}; use KERAS_BACKEND=jax (docs/devices.md)."
        )

    scope = contextlib.nullcontext()
    if backend == "jax":
        scope = jax_scope(devices, processes)
    with scope:
        share = current_share()
        if batch_size % share.replicas:
            raise BadInput(
                f"--batch-size {batch_size}: choose a multiple of {share.replicas} (devices), or "
                "another number of --devices."
            )
        yield share, describe_devices(share)


def jax_scope(devices, processes):
    """A context in which JAX computes on so many devices of each process."""
    import jax

    if devices and jax.config.jax_num_cpu_devices in (None, -1):
        jax.config.update("jax_num_cpu_devices", devices)  # no effect on accelerators
    if processes:
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise BadInput(
                f"The processes cannot connect to each other ({reason}); check "
                "KERAS_DISTRIBUTION_JOB_ADDRESSES and the like (docs/devices.md)."
            ) from None

    try:
        local = jax.local_devices()
    except Exception as error:  # JAX asserts, among others
        raise BadInput(
            f"JAX finds nothing to compute on ({error!r}); check JAX_PLATFORMS, or {CHOICES}."
        ) from None
    if not devices:  # a CPU is shared only where asked
        devices = 1 if local[0].platform == "cpu" else len(local)
    if devices > len(local):
        raise BadInput(f"--devices {devices}: there are {len(local)}; choose fewer.")
    if devices == 1 and not processes:
        return contextlib.nullcontext()

    names = [
        f"{device.platform}:{device.id}"
        for process in range(jax.process_count())
        for device in jax.local_devices(process)[:devices]
    ]
    # each process gives its own part of a batch: nothing is left for Keras to share out
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope()


def current_share():
    """The Share under Keras' distribution of this moment."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return Share()
    import jax

    replicas = distribution.device_mesh.devices.size
    return Share(replicas, jax.process_count(), jax.process_index())


def describe_devices(share):
    """One line on what Keras' backend computes on."""
    found = accelerators()
    line = found[0] if found else f"CPU, {joblib.cpu_count()} threads"
    if share.replicas > 1:
        line += (
            f"; each batch is shared out among {share.replicas} devices "
            f"(processes: {share.processes})"
        )
    return f"{line} ({keras.backend.backend()})"


def accelerators():
    """Names of the accelerators that Keras' backend sees on this machine."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    import tensorflow.config

    gpus = tensorflow.config.list_physical_devices("GPU")
    return [tensorflow.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]


def warn_of_precision(precision):
    """Say that `precision` is slow, where a CPU computes that has no instructions for it. Elsewhere
    than on Linux nothing is known of that."""
    if precision != "bfloat16" or accelerators() or not CPU_INFO.is_file():
        return
    if "bf16" not in CPU_INFO.read_text():  # avx512_bf16, amx_bf16; ARM: bf16
        print(
            "This processor has no instructions for bfloat16: all takes several times as long as in"
            " float32, training up to ten times; leave out --precision bfloat16.",
            flush=True,
        )
