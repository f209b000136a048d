"""Keras, imported once, without the lines that its backends print at their start."""

import logging
import os

from transfer.console import BadInput, only_if_it_fails

CHOICES = "set KERAS_BACKEND to tensorflow, jax or torch"

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# TensorFlow leaves oneDNN's convolutions, twice as fast as its own, off on older processors
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# what JAX has compiled, the next process need not compile
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "data/cache/jax")
os.environ["KERAS_NNX_ENABLED"] = "false"
try:
    with only_if_it_fails(f"Keras cannot be loaded; to try another backend, {CHOICES}."):
        import keras as keras  # for the other modules

        # imports TensorFlow, where that is installed, for the other backends too
        keras.utils.set_random_seed(0)
except Exception as error:  # not installed, misspelt, versions that do not fit, no GPU ...
    raise BadInput(
        f"Keras cannot be loaded ({error!r}); install what is missing, or {CHOICES}."
    ) from None

# of a user's ~/.keras/keras.json the backend counts, and nothing else
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_image_data_format("channels_last")
# of retracing, which is meant where it happens
logging.getLogger("tensorflow").setLevel(logging.ERROR)
