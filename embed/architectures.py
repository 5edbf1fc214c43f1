"""The networks that turn pixels into embeddings, in backend-neutral Keras 3.

Every network maps `(n, size, size, 3)` float32 RGB in 0..255 to `(n, dim)` float32 unit rows.

Sources: VGG, Simonyan and Zisserman, arXiv 1409.1556; GeM pooling, Radenovic et al., arXiv 1711.02512, eq. 3;
the descriptor head (linear projection, normalisation) follows SSCD, Pizzi et al., arXiv 2202.10261, section 4.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

VGG_COPY_BLOCKS = ((24, 24), (48, 48), (96, 96, 96), (192, 192, 192), (320, 320))


@keras.saving.register_keras_serializable(package="neardup")
class GeneralizedMeanPooling(layers.Layer):
    """GeM: the `p`-norm mean over all positions, `(n, h, w, c)` -> `(n, c)` float32."""

    def __init__(self, p: float = 3.0, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.p = p

    def call(self, features: Any) -> Any:
        positive = ops.maximum(ops.cast(features, "float32"), 1e-6)
        return ops.power(ops.mean(ops.power(positive, self.p), axis=(1, 2)), 1.0 / self.p)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "p": self.p}


def vgg_copy(*, size: int, dim: int, dtype: str = "float32") -> keras.Model:
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
    x = GeneralizedMeanPooling()(x)
    x = layers.Dense(dim, use_bias=False, dtype="float32")(x)
    x = layers.BatchNormalization(momentum=0.98, center=False, scale=False, dtype="float32")(x)
    x = layers.UnitNormalization(dtype="float32", name="embedding")(x)
    return keras.Model(images, x, name="vgg_copy")
