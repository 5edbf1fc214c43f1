"""The embeddings that the batch benchmark joins: seeded synthetic ones, or those of a folder of photos and edits.

The synthetic ones have the structure that those of a network have: a spectrum that decays along axes that are no
coordinates, topics of very different size, and a mean that all share. How much of each is their `Crowding`. Half of the
images are families: a photo and 1 to 20 edits of it at cosines from 0.7 to 1.0. Uniform noise on the
sphere would leave nothing to join.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 256
NUM_TOPICS = 1000
MAX_EDITS = 20
MIN_EDIT_COSINE = 0.7
EDITS_PER_PHOTO = 3
PHOTOS_AT_ONCE = 64
PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowding:
    """How synthetic photos crowd.

    Variances fall by `exp(-2 / spectrum_decay)` from axis to axis, the k-th largest topic has `k ** -topic_exponent` of
    the photos, and a photo has a share within `topic_share` of its squared length from its topic, after `mean_share`
    of it is that of all photos.
    """

    spectrum_decay: float
    topic_exponent: float
    topic_share: tuple[float, float]
    mean_share: float


SPREAD = Crowding(spectrum_decay=50.0, topic_exponent=0.85, topic_share=(0.1, 0.65), mean_share=0.0)
"""As an earlier embedder saw real photos: 48 effective dimensions, strangers around a cosine of 0."""
SHIPPED = Crowding(spectrum_decay=42.0, topic_exponent=0.95, topic_share=(0.1, 0.6), mean_share=0.24)
"""As the embedder shipped now sees them: 39 effective dimensions, strangers around a cosine of 0.23."""
CROWDINGS = {"spread": SPREAD, "shipped": SHIPPED}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedEmbeddings:
    """`embeddings` `(n, dim)` float32 unit rows; rows with the same `family` `(n,)` come from one photo."""

    embeddings: NDArray[np.float32]
    family: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Density:
    """How crowded embeddings are.

    Effective dimensions (the participation ratio of the variances: `n` for `n` equal ones), the share of the variance
    that the first principal axes hold, and quantiles of the cosines of random pairs.
    """

    effective_dims: float
    variance_of_first: dict[str, float]
    cosine_quantiles: dict[str, float]


def density_of(embeddings: NDArray[np.float32], *, seed: int = 0, num_pairs: int = 2_000_000) -> Density:
    """The density of `(n, dim)` unit rows, from seeded random pairs of distinct rows."""
    rng = np.random.default_rng(seed)
    centred = embeddings - embeddings.mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred / len(centred)).astype(np.float64)[::-1]
    shares = np.cumsum(variances) / variances.sum()
    left, right = rng.integers(0, len(embeddings), (2, num_pairs))
    is_pair = left != right
    cosines = row_cosines(embeddings, left[is_pair], right[is_pair])
    return Density(
        effective_dims=float(variances.sum() ** 2 / (variances**2).sum()),
        variance_of_first={str(num): float(shares[num - 1]) for num in (1, 4, 16, 32, 64, 128) if num <= len(shares)},
        cosine_quantiles={str(q): float(np.quantile(cosines, q)) for q in (0.5, 0.9, 0.99, 0.999, 0.9999)},
    )


def row_cosines(rows: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.float32]:
    """Cosines of the unit rows `left[i], right[i]`, `(m,)` float32, in chunks that keep memory bounded."""
    cosines = np.empty(len(left), np.float32)
    for first in range(0, len(left), PAIRS_AT_ONCE):
        chunk = slice(first, first + PAIRS_AT_ONCE)
        cosines[chunk] = np.einsum("nd,nd->n", rows[left[chunk]], rows[right[chunk]])
    return cosines


def plant_embeddings(
    num_images: int, *, seed: int, topics: NDArray[np.float32] | None = None, crowding: Crowding = SPREAD
) -> PlantedEmbeddings:
    """`num_images` embeddings, at least 2, about half of them in families; the seed decides them.

    Batches of one corpus that is larger than memory share their `topics`, from `draw_topics`.
    """
    rng = np.random.default_rng(seed)
    num_edits = rng.integers(1, MAX_EDITS, size=num_images, endpoint=True)
    num_families = max(1, int(np.searchsorted(np.cumsum(num_edits + 1), num_images // 2, side="right")))
    num_edits = np.minimum(num_edits[:num_families], num_images - 1)
    num_photos = num_images - int(num_edits.sum())
    photos = _photo_embeddings(num_photos, rng, draw_topics(rng, crowding) if topics is None else topics, crowding)
    photo_of_edit = np.repeat(np.arange(num_families), num_edits)
    cosine = rng.uniform(MIN_EDIT_COSINE, 1.0, len(photo_of_edit)).astype(np.float32)[:, None]
    edited = photos[photo_of_edit]
    change = _directions(len(edited), rng, crowding)
    change = _unit(change - np.einsum("nd,nd->n", change, edited)[:, None] * edited)
    edits = cosine * edited + np.sqrt(1 - cosine**2) * change
    order = rng.permutation(num_images)
    return PlantedEmbeddings(
        embeddings=_unit(np.concatenate([photos, edits]))[order],
        family=np.concatenate([np.arange(num_photos), photo_of_edit])[order],
    )


def plant_crowd(num_images: int, *, cosine: float, seed: int) -> NDArray[np.float32]:
    """`(num_images, dim)` float32 unit rows at one cosine to one centre, so about `cosine ** 2` from one another."""
    rng = np.random.default_rng(seed)
    centre = _directions(1, rng, SPREAD)
    rows = np.empty((num_images, DIM), np.float32)
    for first in range(0, num_images, PAIRS_AT_ONCE):
        change = _directions(min(PAIRS_AT_ONCE, num_images - first), rng, SPREAD)
        change = _unit(change - (change @ centre.T) * centre)
        rows[first : first + len(change)] = _unit(cosine * centre + np.sqrt(1 - cosine**2) * change)
    return rows


def embed_photos(folder: Path, num_images: int, *, seed: int) -> PlantedEmbeddings:
    """About `num_images` embeddings of photos of `folder` and of three edits of each, by the built-in embedder."""
    from embed.embedder import load_embedder
    from embed.evaluation.edits import EDITS
    from embed.evaluation.planted import draw_photos, edited_photo, list_photos, open_photo, readable_images
    from embed.preprocessing import to_square

    embedder = load_embedder("vgg_copy", num_threads=1)
    drawn = draw_photos(list_photos(folder), max(1, num_images // (1 + EDITS_PER_PHOTO)), seed=seed)
    photos, _ = readable_images(drawn)
    rows = []
    for first in range(0, len(photos), PHOTOS_AT_ONCE):
        squares = []
        for number, path in enumerate(photos[first : first + PHOTOS_AT_ONCE], start=first):
            edits = np.random.default_rng([seed, number]).choice(list(EDITS), EDITS_PER_PHOTO, replace=False)
            edited = [edited_photo(path, str(edit), seed=seed, photo_number=number) for edit in edits]
            squares += [to_square(pixels, embedder.spec.size) for pixels in (open_photo(path), *edited)]
        rows.append(embedder.embed(np.stack(squares)))
    order = np.random.default_rng(seed).permutation(len(photos) * (1 + EDITS_PER_PHOTO))
    family = np.repeat(np.arange(len(photos)), 1 + EDITS_PER_PHOTO)
    return PlantedEmbeddings(embeddings=_unit(np.concatenate(rows))[order], family=family[order])


def draw_topics(rng: np.random.Generator, crowding: Crowding = SPREAD) -> NDArray[np.float32]:
    """The directions `(NUM_TOPICS, DIM)` around which photos crowd."""
    return _directions(NUM_TOPICS, rng, crowding)


def _photo_embeddings(
    num: int, rng: np.random.Generator, topics: NDArray[np.float32], crowding: Crowding
) -> NDArray[np.float32]:
    weight = 1.0 / np.arange(1, NUM_TOPICS + 1) ** crowding.topic_exponent
    topic = rng.choice(NUM_TOPICS, num, p=weight / weight.sum())
    share = rng.uniform(*crowding.topic_share, num).astype(np.float32)[:, None]
    photos = _unit(np.sqrt(share) * topics[topic] + np.sqrt(1 - share) * _directions(num, rng, crowding))
    if not crowding.mean_share:
        return photos
    mean = _directions(1, np.random.default_rng(0), crowding)
    return _unit(np.sqrt(crowding.mean_share) * mean + np.sqrt(1 - crowding.mean_share) * photos)


def _directions(num: int, rng: np.random.Generator, crowding: Crowding) -> NDArray[np.float32]:
    """Unit rows whose variance decays exponentially over dimensions that are no coordinate axes."""
    spectrum = np.exp(-np.arange(DIM, dtype=np.float32) / np.float32(crowding.spectrum_decay))
    return _unit((rng.standard_normal((num, DIM), dtype=np.float32) * spectrum) @ _axes())


@cache
def _axes() -> NDArray[np.float32]:
    """The same random orthonormal axes for every seed: a network's last layer has no coordinate of large variance."""
    axes: NDArray[np.float32] = np.linalg.qr(np.random.default_rng(0).standard_normal((DIM, DIM))).Q.astype(np.float32)
    return axes


def _unit(rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit
