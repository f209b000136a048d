"""The devices and processes that share the work.

    one machine         TensorFlow: tf.distribute.MirroredStrategy; JAX: keras.distribution.DataParallel
    several machines    JAX: processes that keras.distribution.initialize brings together

Each batch is shared out evenly and gradients are averaged: the same training as on one device.
"""

import contextlib
import os
from typing import NamedTuple

from transfer.backend import keras
from transfer.console import BadInput


class Share(NamedTuple):
    """What of each batch this process computes."""

    replicas: int = 1  # devices of all processes together
    processes: int = 1
    process: int = 0  # 0 records the run
    whole_batches: bool = False  # the engine takes this process' part out of them itself


@contextlib.contextmanager
def on_devices(devices, batch_size, processes=False):
    """Within it, networks are built for and trained on the devices that --devices and --processes name.
    Call it before anything is computed. Yields (Share, one line on what computes). BadInput for misfits."""
    backend = keras.backend.backend()
    if backend == "torch" and (devices or 1) > 1 or backend != "jax" and processes:
        flag = "--processes" if processes else "--devices"
        raise BadInput(
            f"{flag} does not work on {backend}; use KERAS_BACKEND=jax (docs/devices.md)."
        )
    with contextlib.ExitStack() as stack:
        if backend == "tensorflow":
            stack.enter_context(tensorflow_scope(devices, batch_size))
        elif backend == "jax":
            stack.enter_context(jax_scope(devices, batch_size, processes))
        share = current_share()
        if batch_size % share.replicas:
            raise BadInput(
                f"--batch-size {batch_size}: choose a multiple of {share.replicas} (devices)."
            )
        yield share, describe_devices(backend, share)


def choose_devices(wanted, found, batch_size):
    """How many of the devices `found` are used: those wanted, or as many as a batch can be shared among."""
    if wanted is None:
        return max(number for number in range(1, found + 1) if batch_size % number == 0)
    if wanted > found:
        raise BadInput(f"--devices {wanted}: there are {found} accelerators; choose fewer.")
    return wanted


def tensorflow_scope(devices, batch_size):
    """A context in which TensorFlow computes on so many devices."""
    import tensorflow

    gpus = tensorflow.config.list_physical_devices("GPU")
    if gpus:
        devices = choose_devices(devices, len(gpus), batch_size)
        tensorflow.config.set_visible_devices(gpus[:devices], "GPU")
    elif (devices or 1) > 1:
        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        parts = [tensorflow.config.LogicalDeviceConfiguration()] * devices
        tensorflow.config.set_logical_device_configuration(cpu, parts)
    if (devices or 1) == 1:
        return contextlib.nullcontext()
    names = [
        device.name for device in tensorflow.config.list_logical_devices("GPU" if gpus else "CPU")
    ]
    return tensorflow.distribute.MirroredStrategy(names).scope()


def jax_scope(devices, batch_size, processes):
    """A context in which JAX computes on so many devices of each process."""
    import jax

    if (devices or 1) > 1 and jax.config.jax_num_cpu_devices in (None, -1):
        jax.config.update("jax_num_cpu_devices", devices)  # no effect on accelerators
    if processes:
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "check KERAS_DISTRIBUTION_JOB_ADDRESSES and the like (docs/devices.md)"
            raise BadInput(f"The processes do not find each other ({reason}); {advice}.") from None
    local = jax.local_devices()
    found = len(local) if devices or local[0].platform != "cpu" else 1
    devices = choose_devices(devices, found, batch_size)
    if not processes and devices == 1:
        return contextlib.nullcontext()
    by_process = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    chosen = [device for index in sorted(by_process) for device in by_process[index][:devices]]
    names = [f"{device.platform}:{device.id}" for device in chosen]
    # each process gives its own part of a batch: nothing is left for Keras to share out
    return keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope()


def current_share():
    """The Share under the distribution of this moment, as the engine knows it."""
    backend, distribution = keras.backend.backend(), keras.distribution.distribution()
    if backend == "jax" and distribution:
        import jax

        return Share(
            distribution.device_mesh.devices.size, jax.process_count(), jax.process_index()
        )
    if backend == "tensorflow":
        import tensorflow

        return Share(tensorflow.distribute.get_strategy().num_replicas_in_sync, whole_batches=True)
    return Share()


def describe_devices(backend, share):
    """One line on what `backend` computes on."""
    found, line = accelerators(backend), f"CPU, {os.cpu_count()} threads"
    if found:
        line = f"{found[0]}, " + (
            f"{share.replicas} of {len(found)} GPUs" if len(found) > 1 else "1 GPU"
        )
    if share.replicas > 1:
        line += f"; each batch is shared out among {share.replicas} devices"
        line += f" of {share.processes} processes" * (share.processes > 1)
    return f"{line} ({backend})"


def accelerators(backend):
    """Names of the accelerators that a backend sees on this machine."""
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    import tensorflow.config

    gpus = tensorflow.config.list_physical_devices("GPU")
    return [tensorflow.config.experimental.get_device_details(gpu)["device_name"] for gpu in gpus]
