"""The geometric verifier: whether two images show one picture, judged by local features and pixels, without a network.

Keypoints of both images are matched one to one, a homography is fitted robustly, and the images are laid over each
other: they are the same picture when enough matches agree on a sane transform and the pixels under it correlate nearly
everywhere. The last test tells one photo with two captions from one caption on two photos. It labels pairs for the
training of other parts and explains matches to people; it is far too slow to look at every candidate.

Sources: SIFT, Lowe, IJCV 2004, with its ratio test; RootSIFT, Arandjelovic and Zisserman, CVPR 2012; MAGSAC++,
Barath et al., arXiv 1912.05909, as OpenCV implements it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from embed.errors import EmbedError
from embed.ranges import check_ranges

BLOCKS_PER_SIDE: Final = 8
_MIRROR_SIGN: Final = np.array([-1, 1], np.float32)
_MIRROR_SHIFT: Final = np.array([1, 0], np.float32)
_COLORS: Final = ((79, 70, 229), (15, 157, 118), (217, 130, 43), (194, 65, 124), (14, 143, 200))
_MIN_DEVIATION: Final = 4.0
"""Gray levels; a block that varies less has nothing to correlate."""


class Verdict(StrEnum):
    """`UNSURE` where an image has too little texture or the evidence is thin; training leaves such pairs out."""

    SAME = "same"
    DIFFERENT = "different"
    UNSURE = "unsure"


@dataclass(frozen=True, slots=True, kw_only=True)
class GeometryParams:
    """What makes two images the same: many inliers and a fair agreement, or fewer and a near-perfect one.

    Inliers are matches on one transform, agreement the share of blocks under it that correlate. With at least
    `many_inliers`, or `large_share` of the keypoints of the image that has fewer, an agreement of `fair_agreement` is
    enough (a caption or stickers cover the rest); with `min_inliers` it takes `full_agreement` (two faces or two signs
    share some keypoints). Half of either, or fewer than `min_keypoints` in an image, leaves the verdict open.
    `max_error_px` is at `max_side` pixels.
    """

    max_side: int = 448
    num_keypoints: int = 1500
    max_ratio: float = 0.85
    max_error_px: float = 5.0
    min_keypoints: int = 30
    min_inliers: int = 15
    many_inliers: int = 60
    large_share: float = 0.35
    fair_agreement: float = 0.5
    full_agreement: float = 0.9

    def __post_init__(self) -> None:
        ranges = {
            "max_side": (64, 4096),
            "num_keypoints": (16, 20_000),
            "max_ratio": (0.1, 1.0),
            "max_error_px": (0.5, 50.0),
            "min_keypoints": (4, 10_000),
            "min_inliers": (5, 10_000),
            "many_inliers": (self.min_inliers, 10_000),
            "large_share": (0.0, 1.0),
            "fair_agreement": (0.0, 1.0),
            "full_agreement": (self.fair_agreement, 1.0),
        }
        check_ranges(self, ranges, error=EmbedError)


DEFAULT_PARAMS: Final = GeometryParams()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalFeatures:
    """An image made ready for any number of pairs.

    `gray` `(h, w)` uint8, at most `max_side` long; `points` `(n, 2)` float32 x, y; `descriptors` `(n, 128)` float32
    unit rows. The mirrored ones belong to the mirrored image.
    """

    gray: NDArray[np.uint8]
    points: NDArray[np.float32]
    descriptors: NDArray[np.float32]
    mirrored_points: NDArray[np.float32]
    mirrored_descriptors: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Verification:
    """The verdict and its evidence.

    `left_points` and `right_points` `(num_inliers, 2)` are the agreeing matches as fractions of the frames;
    `transform` `(3, 3)` takes fractions of the left frame to those of the right one, mirrored first where
    `is_mirrored`; `agreement` is the share of textured blocks under it whose pixels correlate. Without a transform it
    is None and the arrays are empty.
    """

    verdict: Verdict
    num_inliers: int
    agreement: float
    is_mirrored: bool
    transform: NDArray[np.float64] | None
    left_points: NDArray[np.float32]
    right_points: NDArray[np.float32]


def find_features(pixels: NDArray[np.uint8], params: GeometryParams = DEFAULT_PARAMS) -> LocalFeatures:
    """The keypoints of `(h, w, 3)` uint8 RGB, and of its mirror image."""
    gray = _shrunk(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), params.max_side)
    points, descriptors = _root_sift(gray, params.num_keypoints)
    mirrored_points, mirrored_descriptors = _root_sift(np.ascontiguousarray(gray[:, ::-1]), params.num_keypoints)
    return LocalFeatures(
        gray=gray,
        points=points,
        descriptors=descriptors,
        mirrored_points=mirrored_points,
        mirrored_descriptors=mirrored_descriptors,
    )


def _shrunk(gray: NDArray[np.uint8], max_side: int) -> NDArray[np.uint8]:
    scale = max_side / max(gray.shape)
    if scale >= 1:
        return gray
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    return np.asarray(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), np.uint8)


def _root_sift(gray: NDArray[np.uint8], num_keypoints: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points and descriptors, the strongest first; Hellinger's kernel on SIFT is the dot product of these rows."""
    keypoints, histograms = cv2.SIFT.create(nfeatures=num_keypoints, contrastThreshold=0.02).detectAndCompute(
        gray, None
    )
    if histograms is None or not len(keypoints):
        return np.empty((0, 2), np.float32), np.empty((0, 128), np.float32)
    rows = np.asarray(histograms, np.float32)[:num_keypoints]
    rows = np.sqrt(rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-6))
    points = np.array([keypoint.pt for keypoint in keypoints], np.float32)[:num_keypoints]
    return points, rows


def verify_geometry(left: LocalFeatures, right: LocalFeatures, params: GeometryParams = DEFAULT_PARAMS) -> Verification:
    """Judge two images; the verdict and the number of inliers do not depend on which one is left."""
    if _sort_key(right) < _sort_key(left):
        return _swapped(verify_geometry(right, left, params))
    plain = _verify_one(left, right.gray, right.points, right.descriptors, params, is_mirrored=False)
    if plain.verdict is Verdict.SAME:
        return plain
    mirrored = _verify_one(
        left,
        np.ascontiguousarray(right.gray[:, ::-1]),
        right.mirrored_points,
        right.mirrored_descriptors,
        params,
        is_mirrored=True,
    )
    if mirrored.verdict is Verdict.SAME or mirrored.num_inliers > plain.num_inliers:
        return mirrored
    return plain


def _sort_key(features: LocalFeatures) -> tuple[tuple[int, ...], bytes]:
    return features.gray.shape, features.gray.tobytes()


def _swapped(found: Verification) -> Verification:
    transform: NDArray[np.float64] | None = None
    if found.transform is not None:
        mirror = np.diag([-1.0 if found.is_mirrored else 1.0, 1.0, 1.0])
        mirror[0, 2] = float(found.is_mirrored)
        back = np.asarray(mirror @ np.linalg.inv(found.transform) @ mirror, np.float64)
        transform = back / back[2, 2]
    return Verification(
        verdict=found.verdict,
        num_inliers=found.num_inliers,
        agreement=found.agreement,
        is_mirrored=found.is_mirrored,
        transform=transform,
        left_points=found.right_points,
        right_points=found.left_points,
    )


def _verify_one(
    left: LocalFeatures,
    right_gray: NDArray[np.uint8],
    right_points: NDArray[np.float32],
    right_descriptors: NDArray[np.float32],
    params: GeometryParams,
    *,
    is_mirrored: bool,
) -> Verification:
    """Judge `left` against one orientation of the right image."""
    num_keypoints = min(len(left.points), len(right_points))
    no_transform = Verification(
        verdict=_verdict(0, num_keypoints, 0.0, params),
        num_inliers=0,
        agreement=0.0,
        is_mirrored=is_mirrored,
        transform=None,
        left_points=np.empty((0, 2), np.float32),
        right_points=np.empty((0, 2), np.float32),
    )
    matches = mutual_matches(left.descriptors, right_descriptors, max_ratio=params.max_ratio)
    if len(matches) < params.min_inliers // 2:
        return no_transform
    from_left, from_right = left.points[matches[:, 0]], right_points[matches[:, 1]]
    homography, is_inlier = _fit_homography(from_left, from_right, params.max_error_px)
    if homography is None or not _is_sane(homography, left.gray.shape, right_gray.shape):
        return no_transform
    num_inliers = int(is_inlier.sum())
    agreement = overlap_agreement(left.gray, right_gray, homography)
    inlier_left = np.asarray(from_left[is_inlier] / left.gray.shape[::-1], np.float32)
    inlier_right = np.asarray(from_right[is_inlier] / right_gray.shape[::-1], np.float32)
    if is_mirrored:
        inlier_right = inlier_right * _MIRROR_SIGN + _MIRROR_SHIFT
    return Verification(
        verdict=_verdict(num_inliers, num_keypoints, agreement, params),
        num_inliers=num_inliers,
        agreement=agreement,
        is_mirrored=is_mirrored,
        transform=_in_fractions(homography, left.gray.shape, right_gray.shape),
        left_points=inlier_left,
        right_points=inlier_right,
    )


def _verdict(num_inliers: int, num_keypoints: int, agreement: float, params: GeometryParams) -> Verdict:
    """`num_keypoints` is that of the image that has fewer."""
    many = max(params.min_inliers, min(params.many_inliers, params.large_share * num_keypoints))

    def is_same(share: float) -> bool:
        """Whether this share of each requirement is met."""
        return (num_inliers >= share * many and agreement >= share * params.fair_agreement) or (
            num_inliers >= share * params.min_inliers and agreement >= share * params.full_agreement
        )

    if is_same(1.0):
        return Verdict.SAME
    return Verdict.UNSURE if num_keypoints < params.min_keypoints or is_same(0.5) else Verdict.DIFFERENT


def mutual_matches(left: NDArray[np.float32], right: NDArray[np.float32], *, max_ratio: float) -> NDArray[np.int64]:
    """`(m, 2)` positions in `left` `(n, d)` and `right` `(k, d)`, unit rows, that choose each other.

    A match is kept when its distance is at most `max_ratio` of the distance to the left row's second choice.
    """
    if len(left) < 2 or len(right) < 2:
        return np.empty((0, 2), np.int64)
    similarity = left @ right.T
    best_right = similarity.argmax(axis=1)
    rows = np.arange(len(left))
    best = similarity[rows, best_right]
    is_mutual = similarity.argmax(axis=0)[best_right] == rows
    second = np.partition(similarity, -2, axis=1)[:, -2]
    is_distinct = np.sqrt(np.maximum(2 - 2 * best, 0)) <= max_ratio * np.sqrt(np.maximum(2 - 2 * second, 0))
    kept = np.flatnonzero(is_mutual & is_distinct)
    return np.stack([kept, best_right[kept]], axis=1)


def _fit_homography(
    left: NDArray[np.float32], right: NDArray[np.float32], max_error_px: float
) -> tuple[NDArray[np.float64] | None, NDArray[np.bool_]]:
    """MAGSAC++ with a fixed seed; None where the matches agree on nothing."""
    settings = cv2.UsacParams()
    settings.randomGeneratorState = 0
    settings.confidence = 0.999
    settings.maxIterations = 3000
    settings.threshold = max_error_px
    settings.sampler = cv2.SAMPLING_UNIFORM
    settings.score = cv2.SCORE_METHOD_MAGSAC
    settings.loMethod = cv2.LOCAL_OPTIM_SIGMA
    settings.loIterations = 10
    settings.loSampleSize = 14
    settings.isParallel = False
    try:
        homography, mask = cv2.findHomography(left, right, settings)
    except cv2.error:
        return None, np.zeros(len(left), bool)
    if homography is None or mask is None or not np.isfinite(homography).all():
        return None, np.zeros(len(left), bool)
    return np.asarray(homography, np.float64), np.asarray(mask).ravel().astype(bool)


def _is_sane(homography: NDArray[np.float64], left_shape: tuple[int, ...], right_shape: tuple[int, ...]) -> bool:
    """Whether the left frame becomes a convex quadrilateral, not turned inside out, not absurdly small or thin."""
    height, width = left_shape
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)
    if (np.column_stack([corners, np.ones(4)]) @ homography[2] <= 1e-6).any():
        return False
    moved = cv2.perspectiveTransform(corners[None], homography)[0]
    sides = np.roll(moved, -1, axis=0) - moved
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    if (turns <= 0).any():
        return False
    lengths = np.linalg.norm(sides, axis=1) / np.array([width, height, width, height])
    area = cv2.contourArea(moved.astype(np.float32)) / (right_shape[0] * right_shape[1])
    return bool(lengths.max() <= 4 * lengths.min() and 1e-3 <= area <= 1e3)


def overlap_agreement(left: NDArray[np.uint8], right: NDArray[np.uint8], homography: NDArray[np.float64]) -> float:
    """The share of textured blocks of the overlap in which the two images correlate, 0 without an overlap.

    They are compared in the frame of the one with fewer pixels for the same content, so nothing is enlarged.
    """
    if abs(np.linalg.det(homography[:2, :2])) < 1:
        left, right, homography = right, left, np.asarray(np.linalg.inv(homography), np.float64)
    height, width = left.shape
    laid = cv2.warpPerspective(right, homography, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inside = cv2.warpPerspective(
        np.full(right.shape, 255, np.uint8), homography, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    covered = cv2.boundingRect(inside)
    x, y, w, h = covered
    if min(w, h) < BLOCKS_PER_SIDE:
        return 0.0
    frames = [cv2.GaussianBlur(image, (0, 0), 1.5)[y : y + h, x : x + w].astype(np.float64) for image in (left, laid)]
    mask = inside[y : y + h, x : x + w] > 0
    agreeing = textured = 0
    for rows in np.array_split(np.arange(h), BLOCKS_PER_SIDE):
        for columns in np.array_split(np.arange(w), BLOCKS_PER_SIDE):
            block = np.ix_(rows, columns)
            if mask[block].mean() < 0.9:
                continue
            one, other = (frame[block] for frame in frames)
            if max(one.std(), other.std()) < _MIN_DEVIATION:
                continue
            textured += 1
            spread = one.std() * other.std()
            agreeing += bool(spread > 0 and ((one - one.mean()) * (other - other.mean())).mean() > 0.5 * spread)
    return agreeing / textured if textured else 0.0


def _in_fractions(
    homography: NDArray[np.float64], left_shape: tuple[int, ...], right_shape: tuple[int, ...]
) -> NDArray[np.float64]:
    to_left = np.diag([left_shape[1], left_shape[0], 1.0])
    from_right = np.diag([1.0 / right_shape[1], 1.0 / right_shape[0], 1.0])
    transform = from_right @ homography @ to_left
    return np.asarray(transform / transform[2, 2], np.float64)


def apply_transform(found: Verification, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(n, 2)` fractions of the left frame to fractions of the right one; needs a transform."""
    moved = np.asarray(cv2.perspectiveTransform(points[None].astype(np.float64), found.transform)[0], np.float32)
    return moved * _MIRROR_SIGN + _MIRROR_SHIFT if found.is_mirrored else moved


def describe_transform(found: Verification, *, left_size: tuple[int, int], right_size: tuple[int, int]) -> str:
    """In words what makes the right image of the left one; sizes are width and height in pixels."""
    if found.transform is None:
        return "none"
    to_left, to_right = np.diag([1 / left_size[0], 1 / left_size[1], 1.0]), np.diag([*right_size, 1.0])
    in_pixels = to_right @ found.transform @ to_left
    center = np.array([left_size[0] / 2, left_size[1] / 2, 1.0])
    weight = in_pixels[2] @ center
    moved = (in_pixels @ center)[:2] / weight
    jacobian = (in_pixels[:2, :2] - np.outer(moved, in_pixels[2, :2])) / weight
    scale = float(np.sqrt(abs(np.linalg.det(jacobian))))
    angle = float(np.degrees(np.arctan2(jacobian[1, 0], jacobian[0, 0])))
    words = [f"scaled to {scale:.2f}"]
    if abs(angle) >= 2:
        words.append(f"turned by {angle:.0f} degrees")
    if found.is_mirrored:
        words.append("mirrored")
    return f"{', '.join(words)}; shows {_share_shown(found):.0%} of the left image"


def _share_shown(found: Verification) -> float:
    """The share of the left frame that lies inside the right one."""
    frame = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], np.float32)
    inverse = np.linalg.inv(np.asarray(found.transform))
    right_in_left = cv2.perspectiveTransform(frame[None].astype(np.float64), inverse)[0].astype(np.float32)
    area, _ = cv2.intersectConvexConvex(frame, right_in_left)
    return min(1.0, float(area))


def draw_inliers(
    left: NDArray[np.uint8], right: NDArray[np.uint8], found: Verification, *, height: int = 480, max_lines: int = 60
) -> NDArray[np.uint8]:
    """Both images side by side with lines between agreeing matches, `(height, w, 3)` uint8 RGB."""
    frames = [
        cv2.resize(
            image, (max(1, round(image.shape[1] * height / image.shape[0])), height), interpolation=cv2.INTER_AREA
        )
        for image in (left, right)
    ]
    canvas = np.ascontiguousarray(np.concatenate(frames, axis=1))
    widths = [frame.shape[1] for frame in frames]
    chosen = np.linspace(0, found.num_inliers - 1, min(found.num_inliers, max_lines)).astype(np.int64)
    for number, match in enumerate(chosen.tolist()):
        one = found.left_points[match] * (widths[0], height)
        other = found.right_points[match] * (widths[1], height) + (widths[0], 0)
        color = tuple(int(value) for value in _COLORS[number % len(_COLORS)])
        ends = [tuple(int(value) for value in point) for point in (one, other)]
        cv2.line(canvas, ends[0], ends[1], color, 1, cv2.LINE_AA)
        for end in ends:
            cv2.circle(canvas, end, 3, color, -1, cv2.LINE_AA)
    return canvas
