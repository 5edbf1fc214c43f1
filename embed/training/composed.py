"""Look-alikes made on purpose: pictures that share nearly everything and are different all the same.

A folder of photos seldom holds a catalogue's worth of things photographed alike, yet those set the threshold that every
match must pass. Three kinds are composed of the photos themselves, in families whose members become each other's
negatives: different things on one ground, at one place and size; one outline filled with different patterns; and one
texture drawn again (the same spectrum with other phases).

Sources: packshots and aligned objects as hard negatives, Gusev and Xu, arXiv 2209.08433, section 4; random-phase
textures, Galerne, Gousseau and Morel, IEEE TIP 2011.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from embed.errors import TrainingError

THINGS_PER_GROUND: Final = 16
PATTERNS_PER_OUTLINE: Final = 6
DRAWS_PER_TEXTURE: Final = 4
MIN_CUTOUTS: Final = 32
_FAR_FROM_GROUND: Final = 26
"""Gray levels between a thing and the flat ground around it."""

Picture = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Cutout:
    """A thing cut out of its flat ground: `pixels` `(h, w, 3)`, `mask` `(h, w)` in 0..1, and its photo's position."""

    pixels: Picture
    mask: Picture
    photo: int


def with_lookalikes(photos: NDArray[np.uint8], *, num: int, seed: int) -> NDArray[np.uint8]:
    """The `(n, size, size, 3)` photos without those whose things were cut out, and `num` composed pictures.

    A thing on another ground is still a copy of its photo, so the photo goes. Raises TrainingError when too few photos
    show one thing on a flat ground.
    """
    rng = np.random.default_rng([seed, num])
    on_grounds, in_outlines = num // 2, num // 4
    cutouts = list(islice(find_cutouts(photos, rng), on_grounds + in_outlines // PATTERNS_PER_OUTLINE + 1))
    if len(cutouts) < MIN_CUTOUTS:
        raise TrainingError(
            f"num_composed={num} needs photos of single things on a flat ground, and only {len(cutouts)} of "
            f"{len(photos)} are such; set it to 0"
        )
    things = cycle(cutouts)
    size = photos.shape[1]
    composed = [
        *islice(things_on_grounds(things, size, rng), on_grounds),
        *islice(patterns_in_outlines(things, photos, rng), in_outlines),
        *islice(textures_drawn_again(photos, rng), num - on_grounds - in_outlines),
    ]
    kept = np.ones(len(photos), np.bool_)
    kept[[cutout.photo for cutout in cutouts]] = False
    return np.concatenate([photos[kept], np.stack([np.clip(each, 0, 255).astype(np.uint8) for each in composed])])


def find_cutouts(photos: NDArray[np.uint8], rng: np.random.Generator) -> Iterator[Cutout]:
    """The things of photos that show one on a flat ground, in random order."""
    for photo in rng.permutation(len(photos)).tolist():
        cutout = _cut_out(photos[photo].astype(np.float32), photo)
        if cutout is not None:
            yield cutout


def _cut_out(pixels: Picture, photo: int) -> Cutout | None:
    edge = max(2, len(pixels) // 40)
    frame = np.concatenate([
        pixels[:edge].reshape(-1, 3), pixels[-edge:].reshape(-1, 3),
        pixels[:, :edge].reshape(-1, 3), pixels[:, -edge:].reshape(-1, 3),
    ])  # fmt: skip
    ground = np.median(frame, axis=0)
    if np.abs(frame - ground).mean() > 9:
        return None
    far = (np.abs(pixels - ground).max(axis=2) > _FAR_FROM_GROUND).astype(np.uint8)
    closed = cv2.morphologyEx(far, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    outlines, _ = cv2.findContours(closed, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return None
    mask = cv2.drawContours(np.zeros_like(far), [max(outlines, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    left, top, width, height = cv2.boundingRect(mask)
    touching = max(mask[[0, -1]].mean(), mask[:, [0, -1]].mean())
    is_thing = 0.06 < mask.mean() < 0.55 and touching < 0.25 and min(width, height) > len(pixels) // 4
    if not is_thing or pixels[mask > 0].std(axis=0).mean() < 14:
        return None
    window = np.s_[top : top + height, left : left + width]
    return Cutout(pixels[window], mask[window].astype(np.float32), photo)


def things_on_grounds(things: Iterator[Cutout], size: int, rng: np.random.Generator) -> Iterator[Picture]:
    """Families of different things at nearly one place and size, each family on one kind of ground."""
    while True:
        kind = int(rng.integers(len(_GROUNDS)))
        x, y, scale = rng.uniform(0.42, 0.58), rng.uniform(0.45, 0.6), rng.uniform(0.6, 0.9)
        for _ in range(THINGS_PER_GROUND):
            ground = _GROUNDS[kind](size, rng)
            place = (x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04), scale * rng.uniform(0.9, 1.05))
            yield _placed(ground, next(things), *place)


def patterns_in_outlines(
    things: Iterator[Cutout], photos: NDArray[np.uint8], rng: np.random.Generator
) -> Iterator[Picture]:
    """Families of one outline with its light and shade, filled with parts of different photos."""
    size = photos.shape[1]
    while True:
        thing, scale = next(things), rng.uniform(0.6, 0.9)
        light = thing.pixels.mean(axis=2, keepdims=True) / max(1.0, float(thing.pixels[thing.mask > 0].mean()))
        colour = thing.pixels.reshape(-1, 3).mean(axis=0)
        for _ in range(PATTERNS_PER_OUTLINE):
            pattern = cv2.resize(photos[rng.integers(len(photos))], thing.mask.shape[::-1]).astype(np.float32)
            filled = (0.65 * pattern + 0.35 * colour) * (0.4 + 0.6 * light)
            other = Cutout(np.clip(filled, 0, 255).astype(np.float32), thing.mask, thing.photo)
            yield _placed(_GROUNDS[0](size, rng), other, 0.5, 0.52, scale)


def textures_drawn_again(photos: NDArray[np.uint8], rng: np.random.Generator) -> Iterator[Picture]:
    """Families of textures with one photo's colours and a sharpened spectrum of it, each with phases of its own."""
    size = photos.shape[1]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    while True:
        photo = photos[rng.integers(len(photos))].astype(np.float32)
        mean = photo.mean(axis=(0, 1))
        sharpened = (frequency[..., None] * size + 0.5) ** rng.choice([0.4, 0.8, 1.1])
        spectrum = np.fft.fft2(photo - mean, axes=(0, 1)) * sharpened
        for _ in range(DRAWS_PER_TEXTURE):
            noise = np.fft.fft2(rng.normal(size=(size, size)))
            texture = np.fft.ifft2(spectrum * (noise / (np.abs(noise) + 1e-9))[..., None], axes=(0, 1)).real
            yield (texture / (texture.std() + 1e-6) * rng.uniform(28, 50) + mean).astype(np.float32)


def _placed(ground: Picture, thing: Cutout, x: float, y: float, scale: float) -> Picture:
    """The thing on the ground, its middle at the fractions `x`, `y` and its longer side `scale` of the ground's."""
    size = len(ground)
    height, width = thing.mask.shape
    zoom = scale * size / max(height, width)
    move = np.array([[zoom, 0, x * size - zoom * width / 2], [0, zoom, y * size - zoom * height / 2]], dtype=np.float64)

    def warped(picture: Picture) -> Picture:
        result: NDArray[Any] = cv2.warpAffine(picture, move, (size, size), flags=cv2.INTER_AREA)
        return result.astype(np.float32)

    mask = warped(thing.mask)[..., None]
    return ground * (1 - mask) + warped(thing.pixels) * mask


def _noise(size: int, blur: float, rng: np.random.Generator) -> Picture:
    smooth = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), blur)
    unit: Picture = (smooth / (smooth.std() + 1e-6)).astype(np.float32)[..., None]
    return unit


def _two_tones(size: int, above: NDArray[Any], below: NDArray[Any], horizon: float, sharpness: float) -> Picture:
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    share = 1 / (1 + np.exp(-(y - horizon) * sharpness))
    tones: Picture = np.broadcast_to(above * (1 - share) + below * share, (size, size, 3)).astype(np.float32)
    return tones


def _studio(size: int, rng: np.random.Generator) -> Picture:
    wall = np.array([228, 228, 232]) + rng.uniform(-8, 8, 3)
    floor = np.array([238, 222, 196]) + rng.uniform(-20, 15, 3)
    return _two_tones(size, wall, floor, rng.uniform(0.72, 0.88), 60)


def _paper(size: int, rng: np.random.Generator) -> Picture:
    return np.full((size, size, 3), rng.uniform(240, 255), np.float32)


def _night(size: int, rng: np.random.Generator) -> Picture:
    leaves = np.clip(_noise(size, size / 18, rng), 0, 3) * np.array([8, 18, 8], np.float32)
    return (rng.uniform(0, 22) + leaves).astype(np.float32)


def _meadow(size: int, rng: np.random.Generator) -> Picture:
    grass = np.array([80, 140, 45]) + rng.uniform(-18, 18, 3)
    return (grass + 18 * _noise(size, 1, rng) + 14 * _noise(size, size / 27, rng)).astype(np.float32)


def _beach(size: int, rng: np.random.Generator) -> Picture:
    tones = _two_tones(size, np.array([120, 170, 225]), np.array([205, 180, 130]), rng.uniform(0.4, 0.7), 40)
    return tones + 7 * _noise(size, 1.5, rng)


_GROUNDS: Final = (_studio, _paper, _night, _meadow, _beach)
