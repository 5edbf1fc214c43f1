"""The picture within a picture: a print on a wall, a page on a table, cut out, straightened, without its glare.

Where strong straight edges form a quadrilateral, what it surrounds is mapped to a rectangle; frames and mats are such
quadrilaterals inside each other. A reflection adds white light, which is taken off by how dark the darkest places are.

Sources: quadrilaterals as document scanners find them, by contours of Canny's edges and their polygons (Douglas and
Peucker, 1973), `cv2.approxPolyDP`; the dark channel, He, Sun and Tang, "Single Image Haze Removal Using Dark Channel
Prior", CVPR 2009.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Points = NDArray[np.float32]
Gradients = tuple[NDArray[np.int16], NDArray[np.int16]]

MAX_SIDE: Final = 640
"""Pictures are looked for, and cut out, in images of at most this side; what is cut out becomes much smaller."""
SEARCH_SIDE: Final = 320
MIN_SIDE: Final = 24
MIN_EDGE: Final = 24.0
"""Least gradient of an edge: Sobel's sum over 3 x 3 pixels of 0 to 255."""
MIN_SUPPORT: Final = 0.9
"""Share of each side that has to be an edge. With it a picture is seen in 4 of 100 photographs that hold none."""
_AREAS: Final = (0.12, 0.97)
_NESTED_AREA: Final = 0.65
_MAX_BAND: Final = 0.2
_DARK_WINDOW: Final = 1 / 8
_DARK_BLUR: Final = 1 / 12
_GLARE_SHARE: Final = 0.75


def framed_picture(pixels: Pixels) -> Pixels | None:
    """The picture that `(h, w, 3)` uint8 RGB shows, as a rectangle of its own, or None where none is seen."""
    found = None
    seen = _shrunk(pixels, MAX_SIDE)
    for _ in range(3):  # The wall's edge with the frame, the frame's with the mat, the mat's with the picture.
        corners = _quadrilateral(seen, is_nested=found is not None)
        if corners is None:
            break
        found = seen = _straightened(seen, corners)
    return found


def without_glare(square: Pixels) -> Pixels:
    """`(side, side, 3)` uint8 RGB without most of the white light that lies over it.

    A veil `g` turns `x` into `(1 - g) x + 255 g`. Hardly a place of a picture is without anything dark or of a pure
    color nearby, so the least value around, smoothed, tells `g`; three quarters of it are taken off.
    """
    side = len(square)
    window = max(1, round(_DARK_WINDOW * side))
    darkest = cv2.erode(square.min(axis=2), np.ones((window, window), np.uint8)).astype(np.float32)
    veil = _GLARE_SHARE * cv2.GaussianBlur(darkest, (0, 0), max(0.5, _DARK_BLUR * side))[..., None] / 255
    clear: Pixels = np.clip((square - 255 * veil) / (1 - veil), 0, 255).astype(np.uint8)
    return clear


def _shrunk(pixels: Pixels, side: int) -> Pixels:
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def _quadrilateral(pixels: Pixels, *, is_nested: bool) -> Points | None:
    """The corners `(4, 2)`, x and y, clockwise from the upper left, of the picture; of one inside another its opening.

    The smallest of those not much smaller than the largest: a frame has an outer and an inner edge.
    """
    small = _shrunk(pixels, SEARCH_SIDE)
    if min(small.shape[:2]) < MIN_SIDE:
        return None
    size = np.array(small.shape[1::-1], np.float32)
    gradients = _gradients(small)
    supported = [
        corners
        for corners in _candidates(gradients)
        if _area(corners) <= _AREAS[1] * size.prod()
        and (not is_nested or _is_opening(corners, size))
        and all(_support(gradients, *side) >= MIN_SUPPORT for side in _sides(corners))
    ]
    if not supported:
        return None
    largest = max(map(_area, supported))
    chosen = min((corners for corners in supported if _area(corners) >= _NESTED_AREA * largest), key=_area)
    scale = np.array(pixels.shape[1::-1], np.float32) / size
    return ((_refined(gradients, chosen) + 0.5) * scale - 0.5).astype(np.float32)


def _gradients(small: Pixels) -> Gradients:
    """Across and down, of the color that changes most at each place."""
    (across, down), *others = map(cv2.spatialGradient, cv2.split(cv2.GaussianBlur(small, (0, 0), 1.4)))
    strength = _squared(across, down)
    for x, y in others:
        of_channel = _squared(x, y)
        is_stronger = (of_channel > strength).view(np.uint8)
        for kept, found in ((across, x), (down, y), (strength, of_channel)):
            cv2.copyTo(found, is_stronger, kept)
    return across, down


def _squared(across: Any, down: Any) -> NDArray[np.float32]:
    """The squares of gradients, which float32 holds exactly."""
    x, y = np.asarray(across, np.float32), np.asarray(down, np.float32)
    return x * x + y * y


def _candidates(gradients: Gradients) -> list[Points]:
    """The convex quadrilaterals that outlines of edges resemble."""
    across, down = gradients
    least_area = _AREAS[0] * across.size
    found = []
    for threshold in (20, 40, 80):
        edges = cv2.dilate(cv2.Canny(across, down, threshold, 2 * threshold), np.ones((3, 3), np.uint8))
        for contour in _wide(cv2.findContours(edges, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)[0], least_area):
            hull = cv2.convexHull(contour)
            polygons = (
                cv2.approxPolyDP(hull, share * cv2.arcLength(hull, True), True) for share in (0.02, 0.035, 0.05)
            )
            corners = next((polygon for polygon in polygons if len(polygon) == 4), None)
            if corners is not None and cv2.isContourConvex(corners) and cv2.contourArea(corners) >= least_area:
                found.append(_clockwise(corners.reshape(4, 2).astype(np.float32)))
    return found


def _wide(contours: Sequence[NDArray[np.int32]], least_area: float) -> Iterator[NDArray[np.int32]]:
    """The contours whose bounding rectangles are that large; hundreds are not, so all are measured at once."""
    if not contours:
        return
    points = np.concatenate(contours)[:, 0]
    starts = np.cumsum([0, *(len(contour) for contour in contours[:-1])])
    sides = np.maximum.reduceat(points, starts) - np.minimum.reduceat(points, starts) + 1
    for number in np.flatnonzero(sides.prod(axis=1) >= least_area).tolist():
        yield contours[number]


def _clockwise(corners: Points) -> Points:
    """From the upper left on."""
    x, y = (corners - corners.mean(axis=0)).T
    ordered = corners[np.argsort(np.arctan2(y, x))]
    return np.roll(ordered, -int(ordered.sum(axis=1).argmin()), axis=0)


def _sides(corners: Points) -> list[tuple[Points, Points]]:
    return [(corners[place], corners[(place + 1) % 4]) for place in range(4)]


def _area(corners: Points) -> float:
    return float(cv2.contourArea(corners))


def _is_opening(corners: Points, size: NDArray[np.float32]) -> bool:
    """Whether all corners are those of the image, but for a band around."""
    outer = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float32)
    return bool((np.abs(corners / size - outer) <= _MAX_BAND).all())


def _profiles(
    gradients: Gradients, start: Points, end: Points, *, reach: float, step: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gradients across the line from `start` to `end`: `(points, offsets)`, and the offsets to its right in pixels."""
    across, down = gradients
    height, width = across.shape
    along = end - start
    normal = np.array([-along[1], along[0]], np.float32) / max(1e-6, float(np.hypot(*along)))
    offsets = np.arange(-reach, reach + step / 2, step, dtype=np.float32)
    points = start + along * np.linspace(0.05, 0.95, 48, dtype=np.float32)[:, None]
    x, y = np.moveaxis(points[:, None] + offsets[:, None] * normal, -1, 0)
    columns, rows = np.clip(np.rint(x).astype(int), 0, width - 1), np.clip(np.rint(y).astype(int), 0, height - 1)
    return np.abs(across[rows, columns] * normal[0] + down[rows, columns] * normal[1]), offsets


def _support(gradients: Gradients, start: Points, end: Points) -> float:
    """The share of a side at which there is an edge along it."""
    strengths, _ = _profiles(gradients, start, end, reach=2, step=1)
    return float((strengths.max(axis=1) > MIN_EDGE).mean())


def _refined(gradients: Gradients, corners: Points) -> Points:
    """The corners at which lines through the strongest edges near the sides meet."""
    lines = [_line(gradients, *side) for side in _sides(corners)]
    met = [_crossing(lines[place - 1], lines[place]) for place in range(4)]
    return corners if any(point is None for point in met) else np.array(met, np.float32)


def _line(gradients: Gradients, start: Points, end: Points) -> tuple[Points, Points]:
    """Two points of the line that fits the edge near a side, outliers left out."""
    strengths, offsets = _profiles(gradients, start, end, reach=4, step=0.5)
    places = np.linspace(0.05, 0.95, len(strengths))
    nearest = offsets[strengths.argmax(axis=1)]
    kept = strengths.max(axis=1) > MIN_EDGE
    for _ in range(3):
        slope, offset = np.polyfit(places[kept], nearest[kept], 1)
        misses = np.abs(slope * places + offset - nearest)
        close = kept & (misses <= max(0.75, 2 * float(np.median(misses[kept]))))
        if close.sum() < len(places) // 6:
            break
        kept = close
    along = end - start
    normal = np.array([-along[1], along[0]], np.float32) / max(1e-6, float(np.hypot(*along)))
    return start + normal * np.float32(offset), end + normal * np.float32(slope + offset)


def _crossing(one: tuple[Points, Points], other: tuple[Points, Points]) -> Points | None:
    directions = np.stack([one[1] - one[0], other[0] - other[1]], axis=1)
    if abs(np.linalg.det(directions)) < 1e-3:
        return None
    return np.asarray(one[0] + (one[1] - one[0]) * np.linalg.solve(directions, other[0] - one[0])[0], np.float32)


def _straightened(pixels: Pixels, corners: Points) -> Pixels:
    """What the corners surround, as a rectangle with sides as long as theirs are on average."""
    top, right, bottom, left = (float(np.hypot(*(end - start))) for start, end in _sides(corners))
    width, height = max(8, round((top + bottom) / 2)), max(8, round((left + right) / 2))
    rectangle = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    mapping = cv2.getPerspectiveTransform(corners, rectangle)
    return np.asarray(cv2.warpPerspective(pixels, mapping, (width, height), flags=cv2.INTER_LINEAR), np.uint8)
