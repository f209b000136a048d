"""Several accelerators of one machine, or several machines, through the engines that Keras has for it.

    one machine         tensorflow: tf.distribute.MirroredStrategy; jax: keras.distribution.DataParallel
    several machines    tensorflow: MultiWorkerMirroredStrategy, by TF_CONFIG; jax: its distributed
                        initialisation, by KERAS_DISTRIBUTION_JOB_ADDRESSES and its like

Each batch is shared out evenly, gradients are averaged: the same training as on one device.
"""

import contextlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transfer.screen import BadInput, WorkerLost

TF_VARIABLES = ("TF_CONFIG",)
JAX_VARIABLES = tuple(
    f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
)

STEPS_AT_ONCE = 50  # of training on a GPU by TensorFlow: about a second
NO_ENGINE = "Keras shares no work out on {}; use KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax."


class Share(NamedTuple):
    """What of each batch this process computes."""

    replicas: int = 1  # devices of all workers together
    workers: int = 1
    worker: int = 0  # 0 records the run


@contextlib.contextmanager
def distributed(devices, workers, batch_size):
    """Within it, networks are built for and trained on the devices that --devices and --workers name.

    Call it after Keras is imported and before anything is computed. Yields (Share, what it computes on, as
    one line). BadInput where the backend, the machine, the environment or the batch size does not fit.
    """
    engines = {"tensorflow": tensorflow_scope, "jax": jax_scope}
    backend = sys.modules["keras"].backend.backend()
    if backend not in engines and ((devices or 1) > 1 or workers):
        raise BadInput(NO_ENGINE.format(backend))
    with contextlib.ExitStack() as stack:
        if backend in engines:
            stack.enter_context(engines[backend](devices, workers, batch_size))
        share = current_share()
        if batch_size % share.replicas:
            raise BadInput(
                f"--batch-size {batch_size} cannot be shared out evenly among {share.replicas} "
                f"devices; choose a multiple of {share.replicas}."
            )
        yield share, describe_devices(backend, share)


def describe_devices(backend, share):
    """One line on what `backend` computes on; says where there is a GPU that it cannot use."""
    found = accelerators(backend)
    if found:
        used = f"{share.replicas} of {len(found)} GPUs" if len(found) > 1 else "1 GPU"
        line = f"{found[0]}, {used}"
    else:
        line = f"CPU, {cpu_threads()} threads"
    line += f" ({backend})"
    if share.replicas > 1:
        line += f"; each batch is shared out among {share.replicas} devices"
        line += f" of {share.workers} workers" * (share.workers > 1)
    unused = nvidia_gpu() if not found else None
    if unused:
        line += f"; there is an {unused} that this {backend} cannot use: see the README, 'On a GPU'"
    return line


def cpu_threads():
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def accelerators(backend):
    """Names of the accelerators that a backend sees on this machine."""
    if backend == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices() if device.platform != "cpu"]
    if backend == "torch":
        import torch

        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    import tensorflow

    details = tensorflow.config.experimental.get_device_details
    gpus = tensorflow.config.list_physical_devices("GPU")
    return [details(gpu).get("device_name", "GPU") for gpu in gpus]


def nvidia_gpu():
    """The name of this machine's first NVIDIA GPU as its driver gives it; None where there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def check_environment(variables):
    missing = [name for name in variables if not os.environ.get(name)]
    if missing:
        raise BadInput(
            f"--workers needs the environment variable {missing[0]}, which says what the workers are "
            "(docs/devices.md); set it, or leave --workers out."
        )


def share_of_environment():
    """The Share that the environment names, for work that needs no engine: each does its part."""
    backend = sys.modules["keras"].backend.backend()
    if backend == "torch":
        raise BadInput(NO_ENGINE.format(backend))
    check_environment(TF_VARIABLES if backend == "tensorflow" else JAX_VARIABLES)
    try:
        if backend == "jax":
            count, index = (int(os.environ[name]) for name in JAX_VARIABLES[1:])
        else:
            config = json.loads(os.environ["TF_CONFIG"])
            count, index = len(config["cluster"]["worker"]), int(config["task"]["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"The environment does not say what the workers are ({error}); mend it.") from None
    if not 0 <= index < count:
        raise BadInput(f"The environment names worker {index} of {count}; the first one is 0.")
    return Share(workers=count, worker=index)


def choose_devices(wanted, found, batch_size):
    """How many of the devices `found` are used: those wanted, or as many as a batch can be shared among."""
    if wanted is None:
        return max(number for number in range(1, found + 1) if batch_size % number == 0)
    if wanted > found:
        raise BadInput(f"--devices {wanted}: there are {found} accelerators; choose fewer.")
    return wanted


# TensorFlow ------------------------------------------------------------------------------


@contextlib.contextmanager
def tensorflow_scope(devices, workers, batch_size):
    import tensorflow

    gpus = tensorflow.config.list_physical_devices("GPU")
    if gpus:
        devices = choose_devices(devices, len(gpus), batch_size)
        if devices < len(gpus):
            tensorflow.config.set_visible_devices(gpus[:devices], "GPU")
    elif (devices or 1) > 1:
        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        parts = [tensorflow.config.LogicalDeviceConfiguration()] * devices
        tensorflow.config.set_logical_device_configuration(cpu, parts)
    if not workers and (devices or 1) == 1:
        yield
        return
    if workers:
        check_environment(TF_VARIABLES)
        mend_keras_for_workers()
        try:
            strategy = tensorflow.distribute.MultiWorkerMirroredStrategy()
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"TF_CONFIG cannot be used ({error}); mend it.") from None
    else:
        names = [device.name for device in tensorflow.config.list_logical_devices("GPU" if gpus else "CPU")]
        strategy = tensorflow.distribute.MirroredStrategy(names)
    with strategy.scope():
        yield


def mend_keras_for_workers():
    """Let `fit` run under MultiWorkerMirroredStrategy, which Keras 3 does not (keras issue 20585).

    Keras builds a model from the mean of the first batch over all replicas, and reduces the figures of a
    step, which are the same on every worker already, along an axis that they do not have. Both fail for
    several workers alone; here the batch is that of the first local replica, and the figures stay local.
    """
    import tensorflow
    from keras.src.backend.tensorflow import trainer

    def first_replica(part):
        return tensorflow.distribute.get_strategy().experimental_local_results(part)[0]

    build = trainer.TensorFlowTrainer._maybe_symbolic_build

    def build_from_local(self, iterator=None, data_batch=None):
        if iterator is not None:
            for _, _, batches in iterator:
                data_batch = trainer.tree.map_structure(first_replica, next(batches))
                break
        return build(self, data_batch=data_batch)

    trainer.TensorFlowTrainer._maybe_symbolic_build = build_from_local
    trainer._collective_all_reduce_multi_worker = lambda strategy: False


# JAX -------------------------------------------------------------------------------------


@contextlib.contextmanager
def jax_scope(devices, workers, batch_size):
    import jax
    import keras

    if workers:
        check_environment(JAX_VARIABLES)
    if (devices or 1) > 1 and jax.config.jax_num_cpu_devices in (None, -1):
        jax.config.update("jax_num_cpu_devices", devices)  # no effect on accelerators
    if workers:
        try:
            keras.distribution.initialize()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                f"The workers do not come together ({reason}); mend {JAX_VARIABLES[0]}."
            ) from None
    local = jax.local_devices()
    found = len(local) if devices or local[0].platform != "cpu" else 1
    devices = choose_devices(devices, found, batch_size)
    if not workers and devices == 1:
        yield
        return
    by_worker = {}
    for device in jax.devices():
        by_worker.setdefault(device.process_index, []).append(device)
    chosen = [device for index in sorted(by_worker) for device in by_worker[index][:devices]]
    names = [f"{device.platform}:{device.id}" for device in chosen]
    # each worker gives its own part of a batch: nothing is left for Keras to share out
    with keras.distribution.DataParallel(devices=names, auto_shard_dataset=False).scope():
        yield


# What is under way -----------------------------------------------------------------------


def current_share():
    """The Share under the distribution of this moment, as the engine knows it."""
    keras = sys.modules["keras"]
    if keras.backend.backend() == "jax":
        import jax

        distribution = keras.distribution.distribution()
        if distribution is None:
            return Share()
        return Share(distribution.device_mesh.devices.size, jax.process_count(), jax.process_index())
    if keras.backend.backend() == "tensorflow":
        import tensorflow

        if not tensorflow.distribute.has_strategy():
            return Share()
        strategy = tensorflow.distribute.get_strategy()
        resolver = getattr(strategy, "cluster_resolver", None)
        spec = resolver.cluster_spec().as_dict() if resolver else {}
        if not spec:
            return Share(strategy.num_replicas_in_sync)
        return Share(strategy.num_replicas_in_sync, len(spec["worker"]), resolver.task_id)
    return Share()


def on_own_device(function):
    """`function`, called outside the engine: what it builds and computes there is this worker's alone."""
    keras = sys.modules["keras"]
    if keras.backend.backend() == "tensorflow":  # a strategy's scope is that of one thread
        thread = ThreadPoolExecutor(1)
        return lambda *given: thread.submit(function, *given).result()

    def call(*given):
        distribution = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            return function(*given)
        finally:
            keras.distribution.set_distribution(distribution)

    return call


def steps_at_once(share):
    """How many batches Keras trains on between two looks at the loss: its `steps_per_execution`.

    On TensorFlow each look waits for the device, which then idles until the next batch is there; the other
    backends look on while the device goes on. On a CPU a step may take seconds and nothing is gained, and
    over several devices Keras' loop of steps fails.
    """
    backend = sys.modules["keras"].backend.backend()
    alone = share.replicas == 1
    return STEPS_AT_ONCE if backend == "tensorflow" and alone and accelerators(backend) else 1


def feeds_whole_batches():
    """Whether each worker is given whole batches: TensorFlow takes its part out of them itself."""
    return sys.modules["keras"].backend.backend() == "tensorflow"


@contextlib.contextmanager
def watching_workers(share):
    """Turns what the engine raises where another worker is gone into WorkerLost.

    Engines raise errors of many types for that; a full disk of this machine is none of them.
    """
    try:
        yield
    except Exception as error:
        if share.workers == 1 or isinstance(error, (BadInput, OSError)):
            raise
        reason = " ".join(str(error).split())[:80]
        raise WorkerLost(
            f"another worker does not answer any more ({type(error).__name__}: {reason} ...); start all "
            "workers again with the same command: the run goes on after its last finished epoch"
        ) from error
