"""Keras, imported once, without the lines that its backends print at their start."""

import logging
import os

from transfer.console import BadInput, without_startup_lines

CHOICES = "set KERAS_BACKEND to tensorflow, jax or torch"

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# what JAX has compiled, the next process need not compile
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "data/cache/jax")
try:
    with without_startup_lines():
        import keras as keras  # for the other modules
except ModuleNotFoundError as error:
    raise BadInput(
        f"Keras' backend needs {error.name!r}, which is not installed: "
        f"pip install {error.name}, or {CHOICES}."
    ) from None
except (ImportError, ValueError) as error:  # a name that is misspelt, among others
    raise BadInput(f"Keras cannot be loaded ({error}); {CHOICES}.") from None
# of retracing, which is meant where it happens
logging.getLogger("tensorflow").setLevel(logging.ERROR)
