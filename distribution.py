"""Several accelerators of one machine, or several machines, through the engines that Keras has for it.

    one machine         tensorflow: tf.distribute.MirroredStrategy; jax: keras.distribution.DataParallel
    several machines    tensorflow: MultiWorkerMirroredStrategy, by TF_CONFIG; jax: its distributed
                        initialisation, by KERAS_DISTRIBUTION_JOB_ADDRESSES and its like

Each batch is shared out evenly, gradients are averaged: the same training as on one device.
"""

import contextlib
import os
import sys
from typing import NamedTuple

from files import BadInput

TF_VARIABLES = ("TF_CONFIG",)
JAX_VARIABLES = tuple(
    f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
)


class WorkerLost(BadInput):
    """Another worker does not answer any more; its engine can only be left by ending the process."""


class Share(NamedTuple):
    """What of each batch this process computes."""

    replicas: int = 1  # devices of all workers together
    workers: int = 1
    worker: int = 0  # 0 records the run


def add_distribution_arguments(group, positive, workers=False):
    """--devices and, for training, --workers."""
    group.add_argument(
        "--devices",
        type=positive,
        metavar="N",
        help="share each batch out among N local devices (default: all accelerators; without one, N "
        "virtual devices of the CPU, to try it out)",
    )
    if workers:
        group.add_argument(
            "--workers",
            action="store_true",
            help="this process is one of several, on any machines, that train together, as TF_CONFIG "
            "(tensorflow) or KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES and _PROCESS_ID (jax) say",
        )


@contextlib.contextmanager
def distributed(keras, args):
    """Within it, networks are built for and trained on the devices that --devices and --workers name.

    Call it before anything is computed. BadInput where the backend, the machine, the environment or the
    batch size does not fit.
    """
    engines = {"tensorflow": tensorflow_scope, "jax": jax_scope}
    backend, workers = keras.backend.backend(), getattr(args, "workers", False)
    if backend not in engines:
        if (args.devices or 1) > 1 or workers:
            raise BadInput(
                f"Keras shares no work out on {backend}; use KERAS_BACKEND=tensorflow or KERAS_BACKEND=jax."
            )
        yield Share()
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(engines[backend](args.devices, workers, args.batch_size))
        share = current_share()
        if share.replicas > 1:
            if args.batch_size % share.replicas:
                raise BadInput(
                    f"--batch-size {args.batch_size} cannot be shared out evenly among {share.replicas} "
                    f"devices; choose a multiple of {share.replicas}."
                )
            print(f"Each batch is shared out among {share.replicas} devices.", flush=True)
        yield share


def check_environment(variables):
    missing = [name for name in variables if not os.environ.get(name)]
    if missing:
        raise BadInput(
            f"--workers needs the environment variable {missing[0]}, which says what the workers are "
            "(README, 'Beyond one device'); set it, or leave --workers out."
        )


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
