"""Rules of the embedder with its views under test."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embed.embedder import load_embedder
from embed.embedder_dir import describe_embedder, extend_embedder_dir
from embed.evaluation.descriptors import Descriptor, EmbedderDescriptor, load_descriptors
from embed.evaluation.views import BestView
from embed.pair_classifier.classifier import PairClassifier
from embed.pair_scoring import PairScorer
from embed.views import LIFT, MAX_LIFT, NUM_VIEWS, VIEW_MARGINS, lifted, load_view_embedder, view_sizes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
DIM = 6
MARGINS = (0.0, 0.01, 0.2)
BEST = BestView(PairScorer(), DIM, MARGINS)


def random_rows(num: int, *, seed: int) -> NDArray[np.float32]:
    """Rows of images with three views, `(num, 4 * DIM)`, every embedding of length one."""
    embeddings = np.random.default_rng(seed).normal(size=(num, 4, DIM)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=2, keepdims=True)
    return embeddings.reshape(num, -1)


def slow_score(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The rule, embedding by embedding: all but two views are compared, and a view counts less, or a little more."""
    embeddings_left, embeddings_right = left.reshape(-1, DIM), right.reshape(-1, DIM)
    whole = float(embeddings_left[0] @ embeddings_right[0])
    scores = [whole]
    for i, margin in enumerate(MARGINS, start=1):
        for one, other in ((embeddings_left[i], embeddings_right[0]), (embeddings_left[0], embeddings_right[i])):
            by_view = float(one @ other) - margin
            scores.append(by_view + min(MAX_LIFT, max(0.0, LIFT * (by_view - whole))))
    return max(scores)


def photo(seed: int, *, width: int = 384, height: int = 288) -> NDArray[np.uint8]:
    """A picture whose every part has something of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def tiny(tiny_embedder: str) -> Descriptor:
    """The small embedder with its views."""
    (descriptor,) = load_descriptors(["embedder"], embedder=tiny_embedder, thorough=True)
    return descriptor


def described(descriptor: Descriptor, pictures: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    return descriptor.rows(np.stack([descriptor.prepare(pixels) for pixels in pictures]))


def test_every_score_is_the_best_of_a_slow_loop() -> None:
    """`matrix` finds what comparing embedding by embedding finds."""
    left, right = random_rows(5, seed=0), random_rows(7, seed=1)
    expected = [[slow_score(one, other) for other in right] for one in left]
    np.testing.assert_allclose(BEST.matrix(left, right), expected, atol=1e-6)
    assert BEST.matrix(left, right).dtype == np.float32


def test_pairs_and_matrix_agree() -> None:
    """A pair alone scores as it does among all."""
    left, right = random_rows(5, seed=2), random_rows(5, seed=3)
    np.testing.assert_allclose(BEST.pairs(left, right), np.diag(BEST.matrix(left, right)), atol=1e-6)


def test_the_score_is_symmetric() -> None:
    """Either image may be the crop."""
    left, right = random_rows(5, seed=4), random_rows(7, seed=5)
    np.testing.assert_allclose(BEST.matrix(left, right), BEST.matrix(right, left).T, atol=1e-6)


def test_regions_are_not_compared_with_views() -> None:
    """Two images that share a view, and nothing else, do not match."""
    axes = np.eye(DIM, dtype=np.float32)
    left, right = np.concatenate([axes[0], axes[2]])[None], np.concatenate([axes[1], axes[2]])[None]
    best = BestView(PairScorer(), DIM, (0.0,))
    assert (best.matrix(left, right).item(), best.pairs(left, right).item()) == (0.0, 0.0)


def test_no_images_have_no_scores() -> None:
    """An empty side gives an empty matrix, not an error."""
    rows = random_rows(3, seed=6)
    assert BEST.matrix(rows[:0], rows).shape == (0, 3)
    assert BEST.pairs(rows[:0], rows[:0]).shape == (0,)


@pytest.mark.tensorflow
def test_a_row_is_the_embedding_of_the_whole_and_those_of_the_views(tiny: Descriptor, tiny_embedder: str) -> None:
    """The columns are what the embedder and its views make of the picture by themselves, in this order."""
    embedder, views = load_embedder(tiny_embedder), load_view_embedder(tiny_embedder)
    pictures = [photo(seed, width=60, height=45) for seed in range(3)]

    rows = described(tiny, pictures)

    dim = embedder.spec.dim
    assert rows.shape == (3, (1 + NUM_VIEWS) * dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(
        rows[:, :dim], described(EmbedderDescriptor("whole", embedder, embedder.spec.size), pictures), atol=1e-6
    )
    squares = [np.stack(of_one_size) for of_one_size in zip(*map(views.squares, pictures), strict=True)]
    np.testing.assert_allclose(rows[:, dim:], views.embed(squares).reshape(3, -1), atol=1e-6)


@pytest.mark.tensorflow
def test_a_jpeg_is_decoded_as_large_as_the_largest_square(tiny: Descriptor, tiny_embedder: str) -> None:
    """A reduced scale that would do for the whole alone is too small for the views."""
    spec = describe_embedder(tiny_embedder)
    content = BytesIO()
    Image.fromarray(photo(0, width=400, height=300)).save(content, "JPEG")

    whole = EmbedderDescriptor("whole", load_embedder(tiny_embedder), spec.size).decode(content.getvalue())

    assert min(whole.shape[:2]) < max(view_sizes(spec.size)) <= min(tiny.decode(content.getvalue()).shape[:2]) < 300


@pytest.mark.tensorflow
def test_a_crop_scores_higher_than_by_the_whole_alone() -> None:
    """With the shipped weights a quarter of a photo is closer to it, whichever of the two is asked for."""
    (descriptor,) = load_descriptors(["embedder"], embedder="vgg_copy", thorough=True)
    whole = photo(0)
    dim = describe_embedder("vgg_copy").dim

    rows = described(descriptor, [whole, whole[:144, :192]])

    by_the_whole = float(rows[0, :dim] @ rows[1, :dim])
    assert descriptor.scorer.matrix(rows[:1], rows[1:]).item() > by_the_whole + 0.02
    assert descriptor.scorer.matrix(rows[1:], rows[:1]).item() > by_the_whole + 0.02


@pytest.mark.tensorflow
def test_a_pair_classifier_scores_views_as_it_does_whole_images(tiny_embedder: str, tmp_path: Path) -> None:
    """With a classifier the score is what that makes of the whole images, as similar as the view makes them."""
    spec = describe_embedder(tiny_embedder)
    classifier = PairClassifier(
        projection=np.ones((spec.dim, 4), np.float32),
        bias=np.zeros(4, np.float32),
        output=np.ones(4, np.float32),
        line=np.array([10.0, 0.0, -5.0], np.float32),
        embedder_digest=spec.digest,
    )
    extend_embedder_dir(spec, tmp_path / "classified", pair_classifier=classifier)

    descriptors = load_descriptors(["embedder", "pdq"], embedder=str(tmp_path / "classified"), thorough=True)

    assert [descriptor.name for descriptor in descriptors] == ["vgg_copy + classifier + views", "PDQ"]
    rows = described(descriptors[0], [photo(0)])
    whole, view = rows[:, : spec.dim], rows[:, spec.dim : 2 * spec.dim]
    scorer = descriptors[0].scorer
    assert isinstance(scorer, BestView)
    left, right = np.tile(whole, 1 + NUM_VIEWS), np.tile(-whole, 1 + NUM_VIEWS)
    right[:, spec.dim : 2 * spec.dim] = view
    similarity = lifted(whole @ view.T - np.float32(VIEW_MARGINS[0]), -whole @ whole.T)
    expected = scorer.scorer.matrix_of(similarity, whole, -whole)
    assert expected.item() > scorer.scorer.matrix(whole, -whole).item()
    np.testing.assert_allclose(scorer.matrix(left, right), expected, atol=1e-6)
    np.testing.assert_allclose(scorer.pairs(left, right), expected[0], atol=1e-6)
