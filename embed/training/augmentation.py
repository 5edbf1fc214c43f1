"""Random edits of a batch of photos, the way people and platforms edit them, in `keras.ops`.

A pure part of the trainer: `(n, source, source, 3)` float32 in 0..255 -> `(n, size, size, 3)` float32 in 0..255.
It runs inside the compiled training step, so it works on TensorFlow, JAX and torch alike.

Source: the augmentation list of SSCD, Pizzi et al., arXiv 2202.10261, section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from embed.keras_backend import keras, ops, random

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class EditStrength:
    """How far a view may stray from its photo; each `*_rate` is the share of images the edit touches."""

    min_area: float
    max_zoom_out: float
    zoom_out_rate: float
    max_aspect: float
    max_rotation_deg: float
    rotation_rate: float
    right_angle_rate: float
    color: float
    gray_rate: float
    blur_rate: float
    max_noise: float
    paste_rate: float
    caption_rate: float


PLAIN = EditStrength(
    min_area=0.85,
    max_zoom_out=1.1,
    zoom_out_rate=0.05,
    max_aspect=1.1,
    max_rotation_deg=0.0,
    rotation_rate=0.0,
    right_angle_rate=0.0,
    color=0.15,
    gray_rate=0.02,
    blur_rate=0.05,
    max_noise=4.0,
    paste_rate=0.0,
    caption_rate=0.0,
)
MILD = EditStrength(
    min_area=0.6,
    max_zoom_out=1.3,
    zoom_out_rate=0.1,
    max_aspect=1.2,
    max_rotation_deg=5.0,
    rotation_rate=0.1,
    right_angle_rate=0.0,
    color=0.3,
    gray_rate=0.05,
    blur_rate=0.1,
    max_noise=6.0,
    paste_rate=0.0,
    caption_rate=0.05,
)
STRONG = EditStrength(
    min_area=0.3,
    max_zoom_out=1.8,
    zoom_out_rate=0.25,
    max_aspect=1.5,
    max_rotation_deg=12.0,
    rotation_rate=0.35,
    right_angle_rate=0.33,
    color=0.7,
    gray_rate=0.2,
    blur_rate=0.2,
    max_noise=8.0,
    paste_rate=0.1,
    caption_rate=0.2,
)


def random_view(photos: Tensor, strength: EditStrength, *, size: int, seed: keras.random.SeedGenerator) -> Tensor:
    """One edited view of each photo: geometry first, then paste and caption, then colour, blur and noise."""
    view = _geometry(photos, strength, size=size, seed=seed)
    view = _paste(view, strength, seed=seed)
    view = _caption(view, strength, seed=seed)
    view = _color(view, strength, seed=seed)
    view = _blur(view, strength, seed=seed)
    noise = random.normal(ops.shape(view), seed=seed) * _uniform(view, 0.0, strength.max_noise, seed=seed)
    return ops.clip(view + noise, 0.0, 255.0)


def _uniform(images: Tensor, low: float, high: float, *, seed: keras.random.SeedGenerator, channels: int = 1) -> Tensor:
    """Per-image draws of shape `(n, 1, 1, channels)`."""
    return random.uniform((ops.shape(images)[0], 1, 1, channels), low, high, seed=seed)


def _chance(images: Tensor, rate: float, *, seed: keras.random.SeedGenerator) -> Tensor:
    return ops.cast(_uniform(images, 0.0, 1.0, seed=seed) < rate, "float32")


def _geometry(photos: Tensor, strength: EditStrength, *, size: int, seed: keras.random.SeedGenerator) -> Tensor:
    """Crop or zoom out, aspect, mirror and rotation as one affine map; what lies outside shows another picture.

    `photos` are larger than `size`, so a crop stays sharp. Coordinates are -1..1 across the frame on both sides.
    """
    n, source = ops.shape(photos)[0], photos.shape[1]

    def draw(low: float, high: float) -> Tensor:
        return random.uniform((n,), low, high, seed=seed)

    def choose(rate: float) -> Tensor:
        return ops.cast(draw(0.0, 1.0) < rate, "float32")

    zoom_out = choose(strength.zoom_out_rate)
    log_area = (1 - zoom_out) * draw(math.log(strength.min_area), 0.0) + zoom_out * draw(0.0, 1.0) * (
        2.0 * math.log(strength.max_zoom_out)
    )
    log_aspect = draw(-1.0, 1.0) * math.log(strength.max_aspect)
    width, height = ops.exp((log_area + log_aspect) / 2), ops.exp((log_area - log_aspect) / 2)
    width = ops.where(zoom_out > 0, width, ops.minimum(width, 1.0))
    height = ops.where(zoom_out > 0, height, ops.minimum(height, 1.0))
    shift_x = draw(-1.0, 1.0) * ops.abs(1.0 - width)
    shift_y = draw(-1.0, 1.0) * ops.abs(1.0 - height)
    mirror = 1.0 - 2.0 * choose(0.5)
    degrees = choose(strength.rotation_rate) * draw(-strength.max_rotation_deg, strength.max_rotation_deg)
    quarter_turns = choose(strength.right_angle_rate) * ops.floor(draw(1.0, 4.0))
    angle = degrees * (math.pi / 180) + quarter_turns * (math.pi / 2)
    cos, sin = ops.cos(angle), ops.sin(angle)
    # Output point (x, y) samples the photo at A @ (x, y) + shift: rotate, mirror, then scale to the crop window.
    a, b = width * mirror * cos, -width * mirror * sin
    c, d = height * sin, height * cos

    grid = (ops.arange(size, dtype="float32") + 0.5) * (2.0 / size) - 1.0
    x, y = grid[None, None, :], grid[None, :, None]

    def per_image(value: Tensor) -> Tensor:
        return ops.reshape(value, (-1, 1, 1))

    sample_x = per_image(a) * x + per_image(b) * y + per_image(shift_x)
    sample_y = per_image(c) * x + per_image(d) * y + per_image(shift_y)
    inside = ops.cast(ops.maximum(ops.abs(sample_x), ops.abs(sample_y)) <= 1.0, "float32")[..., None]

    # `affine_transform` works in pixels and keeps the input's shape; the view is its upper left corner.
    half = source / 2.0
    step = 2.0 / size
    first = 0.5 * step - 1.0
    to_pixels = [
        a * step * half,
        b * step * half,
        (a * first + b * first + shift_x + 1.0) * half - 0.5,
        c * step * half,
        d * step * half,
        (c * first + d * first + shift_y + 1.0) * half - 0.5,
        ops.zeros_like(a),
        ops.zeros_like(a),
    ]
    warped = ops.image.affine_transform(
        photos, ops.stack(to_pixels, axis=1), interpolation="bilinear", fill_mode="nearest"
    )[:, :size, :size]
    backdrop = _backdrop(warped, seed=seed)
    return inside * warped + (1.0 - inside) * backdrop


def _backdrop(images: Tensor, *, seed: keras.random.SeedGenerator) -> Tensor:
    """A flat colour (often black or white) or the next picture of the batch."""
    shade = ops.clip(_uniform(images, -255.0, 510.0, seed=seed), 0.0, 255.0)
    tint = _uniform(images, -60.0, 60.0, channels=3, seed=seed) * _chance(images, 0.6, seed=seed)
    flat = ops.clip(shade + tint, 0.0, 255.0)
    picture = _chance(images, 0.35, seed=seed)
    return picture * ops.roll(images, 1, axis=0) + (1.0 - picture) * flat


def _box(images: Tensor, *, left: Tensor, top: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """A 0/1 mask `(n, size, size, 1)` of a rectangle given as fractions of the frame."""
    size = images.shape[1]
    grid = (ops.arange(size, dtype="float32") + 0.5) / size
    x, y = grid[None, None, :, None], grid[None, :, None, None]
    return ops.cast((x >= left) & (x < left + width) & (y >= top) & (y < top + height), "float32")


def _paste(images: Tensor, strength: EditStrength, *, seed: keras.random.SeedGenerator) -> Tensor:
    """A rectangle of up to a quarter of the frame covered by a flat colour or part of another picture."""
    width = _uniform(images, 0.1, 0.5, seed=seed)
    height = _uniform(images, 0.1, 0.5, seed=seed)
    mask = _box(
        images,
        left=_uniform(images, 0.0, 1.0, seed=seed) * (1 - width),
        top=_uniform(images, 0.0, 1.0, seed=seed) * (1 - height),
        width=width,
        height=height,
    ) * _chance(images, strength.paste_rate, seed=seed)
    return mask * _backdrop(images, seed=seed) + (1.0 - mask) * images


def _caption(images: Tensor, strength: EditStrength, *, seed: keras.random.SeedGenerator) -> Tensor:
    """Lines of letter-like marks, on a band of flat colour or straight on the picture, near its top or bottom."""
    n, size = ops.shape(images)[0], images.shape[1]
    height = _uniform(images, 0.1, 0.35, seed=seed)
    at_bottom = _chance(images, 0.65, seed=seed)
    offset = _uniform(images, 0.0, 0.12, seed=seed) * _chance(images, 0.3, seed=seed)
    top = at_bottom * (1.0 - height - offset) + (1.0 - at_bottom) * offset
    full_width = ops.ones_like(height)
    band = _box(images, left=0.0 * full_width, top=top, width=full_width, height=height)
    band = band * _chance(images, strength.caption_rate, seed=seed)

    letters = random.uniform((n, size // 3, size // 2, 1), seed=seed)
    letters = ops.cast(ops.repeat(ops.repeat(letters, 3, axis=1), 2, axis=2) < 0.5, "float32")
    rows = (ops.arange(size, dtype="float32")[None, :, None, None] / size - top) / height
    num_lines = ops.floor(_uniform(images, 1.0, 4.0, seed=seed))
    in_line = ops.cast(ops.abs((rows * num_lines) % 1.0 - 0.5) < 0.28, "float32")
    margin = _uniform(images, 0.02, 0.3, seed=seed)
    text = letters * in_line * _box(images, left=margin, top=top, width=1.0 - 2.0 * margin, height=height)

    paper = _uniform(images, -128.0, 384.0, seed=seed)
    paper = ops.clip(paper + _uniform(images, -30.0, 30.0, channels=3, seed=seed), 0.0, 255.0)
    ink = ops.cast(ops.mean(paper, axis=-1, keepdims=True) < 128.0, "float32") * 255.0
    on_paper = _chance(images, 0.75, seed=seed)
    captioned = on_paper * paper + (1.0 - on_paper) * images
    captioned = text * ink + (1.0 - text) * captioned
    return band * captioned + (1.0 - band) * images


def _color(images: Tensor, strength: EditStrength, *, seed: keras.random.SeedGenerator) -> Tensor:
    """Brightness, contrast, saturation, tint, gamma, and for some images no colour at all."""
    spread = strength.color
    mean = ops.mean(images, axis=(1, 2), keepdims=True)
    images = (images - mean) * ops.exp(_uniform(images, -0.5, 0.4, seed=seed) * spread) + mean
    images = images * ops.exp(_uniform(images, -0.4, 0.35, seed=seed) * spread)
    images = images * (1.0 + _uniform(images, -0.12, 0.12, channels=3, seed=seed) * spread)
    gray = ops.sum(images * ops.convert_to_tensor([0.299, 0.587, 0.114]), axis=-1, keepdims=True)
    saturation = ops.exp(_uniform(images, -0.8, 0.5, seed=seed) * spread)
    saturation = saturation * (1.0 - _chance(images, strength.gray_rate, seed=seed))
    images = ops.clip(gray + (images - gray) * saturation, 0.0, 255.0)
    gamma = ops.exp(_uniform(images, -0.35, 0.35, seed=seed) * spread)
    return 255.0 * ops.power(images / 255.0 + 1e-6, gamma)


def _blur(images: Tensor, strength: EditStrength, *, seed: keras.random.SeedGenerator) -> Tensor:
    """A blend with a blurred copy: from softness to a low-resolution thumbnail."""
    blurred = ops.average_pool(ops.average_pool(images, 3, 1, padding="same"), 3, 1, padding="same")
    weight = _uniform(images, 0.3, 1.0, seed=seed) * _chance(images, strength.blur_rate, seed=seed)
    return images + weight * (blurred - images)
