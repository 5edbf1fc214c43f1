"""From a folder of photos to the pairs that a classifier is trained on and the photos it is then judged on.

Whole sources (sub-folders) are held out where there are enough of them, so that the judgement is about photos of a kind
that training never saw; single photos otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embed.errors import ClassifierError
from embed.evaluation.descriptors import EmbedderDescriptor
from embed.evaluation.labelled_pairs import LabelledPairs, linked_positions
from embed.evaluation.planted import Described, describe_planted, readable_images
from embed.evaluation.same_picture import are_same_thumbnails, thumbnail
from embed.pair_classifier.classifier import CROWD, Background, as_codes

MIN_SOURCES: Final = 4
MIN_PHOTOS: Final = 50
NEAR: Final = 64
"""Others of a photo that are looked at for being the same picture."""


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPhotos:
    """Photos, described; the first `len(described.edited)` of `paths` were edited, the rest are there to mislead.

    `same` `(edited, all)` marks the pairs of files that hold one picture.
    """

    paths: Sequence[Path]
    described: Described
    same: NDArray[np.bool_]

    @property
    def same_pairs(self) -> list[tuple[int, int]]:
        """The marked pairs as positions in `paths`."""
        return [(int(left), int(right)) for left, right in np.argwhere(self.same)]


def mark_labelled(prepared: PreparedPhotos, labelled: LabelledPairs) -> None:
    """Mark the pairs labelled near-duplicate or unsure in `prepared.same`, so that they become no false pairs."""
    for left, right in linked_positions(labelled, prepared.paths):
        for one, other in ((left, right), (right, left)):
            if one < len(prepared.same):
                prepared.same[one, other] = True


def split_background(
    prepared: PreparedPhotos, labelled: Sequence[LabelledPairs], *, num: int
) -> tuple[PreparedPhotos, Background | None]:
    """`num` of the photos that were not edited, at most half of them, become a background and leave the rest.

    Labelled images stay. There is no background where too few photos are left for one.
    """
    num_edited = len(prepared.described.edited)
    kept = {path.resolve() for each in labelled for path in each.images}
    free = [place for place in range(num_edited, len(prepared.paths)) if prepared.paths[place].resolve() not in kept]
    taken = free[: min(num, len(free) // 2)]
    if len(taken) < CROWD:
        return prepared, None
    rest = np.setdiff1d(np.arange(len(prepared.paths)), taken)
    described = replace(prepared.described, corpus=prepared.described.corpus[rest])
    smaller = PreparedPhotos([prepared.paths[place] for place in rest], described, prepared.same[:, rest])
    return smaller, Background(as_codes(prepared.described.corpus[taken]))


def split_photos(
    paths: Sequence[Path], *, held_out: float, seed: int
) -> tuple[list[Path], list[Path], tuple[str, ...]]:
    """Photos to train on, photos held out, and the names of the sources held out (none where photos are split)."""
    if not 0.05 <= held_out <= 0.9:
        raise ClassifierError(f"held_out={held_out} is out of range 0.05..0.9; try 0.25")
    rng = np.random.default_rng(seed)
    sources = sorted({path.parent for path in paths})
    names: tuple[str, ...] = ()
    if len(sources) >= MIN_SOURCES:
        chosen = rng.permutation(len(sources))[: max(1, round(held_out * len(sources)))]
        kept_out = {sources[i] for i in chosen}
        names = tuple(sorted(source.name for source in kept_out))
        is_held_out = np.array([path.parent in kept_out for path in paths])
    else:
        is_held_out = rng.permutation(len(paths)) < round(held_out * len(paths))
    train = [path for path, out in zip(paths, is_held_out, strict=True) if not out]
    rest = [path for path, out in zip(paths, is_held_out, strict=True) if out]
    if min(len(train), len(rest)) < MIN_PHOTOS:
        raise ClassifierError(
            f"{len(train)} photos to train on and {len(rest)} held out are too few; each needs at least {MIN_PHOTOS}, "
            f"and a useful classifier some thousands"
        )
    return train, rest, names


def prepare_photos(
    paths: Sequence[Path], descriptor: EmbedderDescriptor, *, num_edited: int, edits: Sequence[str], seed: int
) -> PreparedPhotos:
    """Describe the photos, `num_edited` of them with every edit; files that do not decode are left out."""
    readable, _ = readable_images(paths)
    order = np.random.default_rng(seed).permutation(len(readable))
    shuffled = [readable[i] for i in order]
    edited, others = shuffled[:num_edited], shuffled[num_edited:]
    (described,) = describe_planted([descriptor], edited, others, edits=edits, seed=seed)
    return PreparedPhotos(shuffled, described, _same_pictures(shuffled, described.corpus, len(edited)))


def _same_pictures(paths: Sequence[Path], corpus: NDArray[np.float32], num_edited: int) -> NDArray[np.bool_]:
    """Which files hold the picture of an edited photo, decided on pixels among its `NEAR` most similar others."""
    with ThreadPoolExecutor() as pool:
        thumbnails = np.stack(list(pool.map(thumbnail, paths)))
    same = np.zeros((num_edited, len(paths)), np.bool_)
    for photo in range(num_edited):
        similarities = corpus @ corpus[photo]
        similarities[photo] = -np.inf
        near = np.argpartition(-similarities, min(NEAR, len(paths) - 1) - 1)[:NEAR]
        same[photo, near] = are_same_thumbnails(thumbnails[photo], thumbnails[near])
    return same
