"""Training the pair classifier: which pairs it learns from, and that numpy computes what Keras learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from embed.errors import ClassifierError
from embed.pair_classifier.classifier import Background, as_codes
from embed.pair_classifier.training import (
    ClassifierSettings,
    TrainingPairs,
    _train_member,
    pair_network,
    planted_pairs,
    train_classifier,
    with_labels,
)
from embed.pair_scoring import PairScorer

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]
DIM = 32
SETTINGS = ClassifierSettings(hidden=8, num_members=2, epochs=8, learning_rate=5e-3, weight_decay=0.01, dropout=0.0)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    unit_rows: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit_rows


def two_regions(seed: int, *, num: int = 6000) -> TrainingPairs:
    """Pairs of equal cosines; those near axis 0 are the same picture from 0.9 on, those near axis 1 from 0.7 on."""
    rng = np.random.default_rng(seed)
    region = rng.integers(0, 2, num)
    centres = unit(rng.normal(0, 0.4, (num, DIM)) + 4 * np.eye(DIM)[region])
    aside = rng.normal(size=(num, DIM))
    aside -= np.einsum("nd,nd->n", aside, centres)[:, None] * centres
    cosine = rng.uniform(0.5, 1.0, num)
    half = np.arccos(cosine) / 2
    aside *= (np.sin(half) / np.linalg.norm(aside, axis=1))[:, None]
    rows = np.concatenate(
        [unit(centres * np.cos(half)[:, None] + aside), unit(centres * np.cos(half)[:, None] - aside)]
    )
    is_same = cosine > np.where(region == 0, 0.9, 0.7)
    return TrainingPairs(rows, np.arange(num), num + np.arange(num), is_same, np.ones(num, np.float32))


@pytest.mark.parametrize("hidden", [0, 8])
def test_numpy_computes_what_keras_learned(hidden: int) -> None:
    pairs, background = two_regions(0, num=512), Background(as_codes(two_regions(5, num=40).rows))
    settings = replace(SETTINGS, epochs=1, hidden=hidden)
    crowding = background.crowding(pairs.rows)
    member = _train_member(pairs, crowding, settings, seed=3)
    network = pair_network(DIM, settings)
    if hidden:
        network.get_layer("hidden").set_weights([member.projection / np.float32(np.sqrt(DIM)), member.bias])
        network.get_layer("output").set_weights([member.output[:, None]])
    network.get_layer("line").set_weights([member.line[:2, None], member.line[2:]])
    left, right = pairs.rows[pairs.left], pairs.rows[pairs.right]
    of_both = crowding[pairs.left] + crowding[pairs.right]
    expected = network.predict([left, right, of_both[:, None]], verbose=0)[:, 0]
    scorer = PairScorer(replace(member, background=background))
    np.testing.assert_allclose(scorer.pairs(left, right), expected, atol=1e-3)


def test_the_mean_of_the_members_is_the_classifier() -> None:
    pairs = two_regions(0, num=512)
    settings = replace(SETTINGS, epochs=1)
    left, right = pairs.rows[pairs.left], pairs.rows[pairs.right]
    none = np.zeros(len(pairs.rows), np.float32)
    together = PairScorer(train_classifier(pairs, settings, embedder_digest="")).pairs(left, right)
    each = [PairScorer(_train_member(pairs, none, settings, seed=seed)).pairs(left, right) for seed in (0, 1)]
    np.testing.assert_allclose(together, np.mean(each, axis=0), atol=1e-3)


def test_it_learns_a_threshold_that_depends_on_the_region() -> None:
    """Where one threshold on the cosine cannot be right everywhere, the classifier is right more often."""
    scorer = PairScorer(
        train_classifier(two_regions(0), replace(SETTINGS, epochs=25, learning_rate=1e-2), embedder_digest="")
    )
    unseen = two_regions(1)
    left, right = unseen.rows[unseen.left], unseen.rows[unseen.right]
    right_share = np.mean((scorer.pairs(left, right) > 0) == unseen.is_same)
    cosines = PairScorer().pairs(left, right)
    best_of_cosine = max(np.mean((cosines > threshold) == unseen.is_same) for threshold in np.linspace(0.5, 1, 101))
    assert right_share > best_of_cosine + 0.05


def test_it_learns_to_ask_more_where_it_is_crowded() -> None:
    """A background in the region of the look-alikes alone is enough, without hidden units."""
    pairs = two_regions(0)
    of_region_0 = two_regions(7).rows[:6000]
    background = Background(as_codes(of_region_0[of_region_0[:, 0] > of_region_0[:, 1]][:100]))
    settings = replace(SETTINGS, hidden=0, epochs=25, learning_rate=1e-1)
    classifier = train_classifier(pairs, settings, embedder_digest="", background=background)
    assert classifier.line[1] < 0 < classifier.line[0]
    unseen = two_regions(1)
    found = PairScorer(classifier).pairs(unseen.rows[unseen.left], unseen.rows[unseen.right]) > 0
    assert np.mean(found == unseen.is_same) > 0.9


def test_the_same_seed_gives_the_same_classifier() -> None:
    first, second = (
        train_classifier(two_regions(0, num=512), replace(SETTINGS, epochs=1), embedder_digest="") for _ in range(2)
    )
    assert first.digest == second.digest


def corpus_and_edits() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Ten files, of which the first three were edited twice; files 0 and 9 are alike."""
    rng = np.random.default_rng(0)
    corpus = unit(rng.normal(size=(10, DIM)))
    corpus[9] = unit((corpus[0] + 0.1 * corpus[5])[None].astype(np.float64))[0]
    edited = np.stack([unit(corpus[:3] + 0.05 * rng.normal(size=(3, DIM))) for _ in range(2)], axis=1)
    return corpus, edited


def test_an_edit_is_paired_with_its_photo_and_another_of_its_edits() -> None:
    corpus, edited = corpus_and_edits()
    pairs = planted_pairs(edited, corpus, num_lookalikes=2, seed=0)
    true = set(zip(pairs.left[pairs.is_same].tolist(), pairs.right[pairs.is_same].tolist(), strict=True))
    assert true == {(10 + i, i // 2) for i in range(6)} | {(10 + i, 10 + (i ^ 1)) for i in range(6)}


def test_lookalikes_are_the_most_similar_others() -> None:
    corpus, edited = corpus_and_edits()
    pairs = planted_pairs(edited, corpus, num_lookalikes=2, seed=0)
    false = set(zip(pairs.left[~pairs.is_same].tolist(), pairs.right[~pairs.is_same].tolist(), strict=True))
    assert len(false) == 12
    assert {(10, 9), (11, 9)} <= false
    assert all(right != (left - 10) // 2 for left, right in false)


def test_files_of_the_same_picture_are_no_false_pair() -> None:
    corpus, edited = corpus_and_edits()
    same = np.zeros((3, 10), bool)
    same[0, 9] = True
    pairs = planted_pairs(edited, corpus, same=same, num_lookalikes=2, seed=0)
    assert not {(10, 9), (11, 9)} & set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


def test_labels_join_at_their_weight() -> None:
    corpus, edited = corpus_and_edits()
    pairs = planted_pairs(edited, corpus, num_lookalikes=2, seed=0)
    more = with_labels(pairs, corpus[:2], np.array([0]), np.array([1]), np.array([False]), weight=10.0)
    assert (more.weight[-1], bool(more.is_same[-1])) == (10.0, False)
    np.testing.assert_array_equal(more.rows[more.left[-1]], corpus[0])


def test_pairs_of_one_kind_are_refused() -> None:
    pairs = two_regions(0, num=64)
    with pytest.raises(ClassifierError, match="all true or all false"):
        train_classifier(replace(pairs, is_same=np.ones(64, bool)), SETTINGS, embedder_digest="")


def test_a_setting_out_of_range_is_named() -> None:
    with pytest.raises(ClassifierError, match=r"dropout=1\.5 is out of range"):
        ClassifierSettings(dropout=1.5)
