"""Keras, imported once, without the lines that its backends print at their start."""

import logging
import os

from transfer.console import BadInput, without_startup_lines

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", "data/cache/jax"
)  # the next process need not compile
try:
    with without_startup_lines():
        import keras
except (ImportError, ValueError) as error:  # of a backend that is not installed, or misspelt
    advice = "install its backend, or set KERAS_BACKEND to tensorflow, jax or torch"
    raise BadInput(f"Keras cannot be loaded ({error}); {advice}.") from None
logging.getLogger("tensorflow").setLevel(
    logging.ERROR
)  # of retracing, which is meant where it happens

__all__ = ["keras"]
