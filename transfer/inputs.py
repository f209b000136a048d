"""What becomes of images on the device, in front of a network: augmentation and preprocessing, as layers.

Batches hand over uint8 images and, where they are augmented, one affine map for each; all else happens
inside the compiled step. Imports Keras, so import it late.
"""

import keras
from keras import ops


def move_pixels(images, maps):
    """Each image seen through its map: one resampling, bilinear, the edges repeated.

    images: uint8 or float (b, h, w, channels). maps: float32 (b, 6), from output to input pixels: column =
    a0 x + a1 y + a2, row = a3 x + a4 y + a5. Returns float32 like images. A gather, as that compiles with
    XLA on every backend; `keras.ops.image.affine_transform` does not on TensorFlow.
    """
    height, width, channels = images.shape[1:]
    a = ops.reshape(maps, (-1, 6, 1, 1))
    x = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, width))
    y = ops.reshape(ops.arange(height, dtype="float32"), (1, height, 1))
    column, row = a[:, 0] * x + a[:, 1] * y + a[:, 2], a[:, 3] * x + a[:, 4] * y + a[:, 5]  # (b, h, w)
    left, top = ops.floor(column), ops.floor(row)
    right_share, low_share = (column - left)[..., None], (row - top)[..., None]
    left, top = ops.cast(left, "int32"), ops.cast(top, "int32")
    pixels = ops.reshape(images, (-1, channels))  # of all images, one after the other
    first = ops.reshape(ops.arange(ops.shape(images)[0], dtype="int32") * (height * width), (-1, 1, 1))

    def neighbour(down, right):
        rows, columns = ops.clip(top + down, 0, height - 1), ops.clip(left + right, 0, width - 1)
        return ops.cast(ops.take(pixels, first + rows * width + columns, axis=0), "float32")

    upper = (1 - right_share) * neighbour(0, 0) + right_share * neighbour(0, 1)
    lower = (1 - right_share) * neighbour(1, 0) + right_share * neighbour(1, 1)
    return (1 - low_share) * upper + low_share * lower


class MovePixels(keras.layers.Layer):
    """`move_pixels` as a layer of (images, maps)."""

    def call(self, images, maps):
        return move_pixels(images, maps)


class Preprocess(keras.layers.Layer):
    """Images as VGG16 takes them: float32, BGR, ImageNet's mean subtracted."""

    def call(self, images):
        return keras.applications.vgg16.preprocess_input(ops.cast(images, "float32"))


def on_images(model, augmented=False):
    """`model`, with all its layers, on what `common.Batches` hands over.

    Its input is uint8 images (b, h, w, 3), or (images, maps) where `augmented`.
    """
    images = keras.Input(model.input_shape[1:], dtype="uint8", name="images")
    inputs, x = images, images
    if augmented:
        maps = keras.Input((6,), name="maps")
        inputs, x = (images, maps), MovePixels(dtype="float32")(images, maps)
    return keras.Model(inputs, model(Preprocess(dtype="float32")(x)))
