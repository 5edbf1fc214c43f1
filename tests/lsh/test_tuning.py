"""Rules of the cost model."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from math import isclose
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.errors import ParameterError
from lsh.near_pairs import near_pairs
from lsh.plans import Plan, TuningTarget, UnitCosts
from lsh.terms import TermParams
from lsh.tuning import START_S, default_settings, measured, plans, shares_at_least

COSTS = UnitCosts(posting_s=5e-8, walked_s=2e-9, kept_s=2e-8, verified_s=1e-7)
SETTINGS = (
    TermParams(dim=64, num_tables=64, num_polytopes=2, polytope_dim=64, last_polytope_dim=16),
    TermParams(dim=64, num_tables=64, num_polytopes=2, polytope_dim=64),
    TermParams(dim=64, num_tables=64, family="minhash", num_activations=12, num_hashes=2),
    TermParams(dim=64, num_tables=64, family="hyperplane", num_planes=16),
)


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


@pytest.fixture(scope="module")
def corpus() -> NDArray[np.float32]:
    """12,000 embeddings around 300 centres, a tenth of them copies of others at cosines of 0.8 to 1."""
    rng = np.random.default_rng(0)
    centres = unit(rng.standard_normal((300, 64), dtype=np.float32))
    rows = unit(0.5 * centres[rng.integers(0, 300, 10_800)] + 0.11 * rng.standard_normal((10_800, 64)))
    cosine = rng.uniform(0.8, 1.0, (1_200, 1))
    noise = rng.standard_normal((1_200, 64))
    noise -= np.einsum("nd,nd->n", noise, rows[:1_200])[:, None] * rows[:1_200]
    return rng.permutation(np.concatenate([rows, unit(cosine * rows[:1_200] + np.sqrt(1 - cosine**2) * unit(noise))]))


def test_what_is_predicted_from_a_sample_is_what_the_whole_corpus_does(corpus: NDArray[np.float32]) -> None:
    """Pairs walked, candidates, bytes and recall of the best plan lie near those measured on the whole corpus."""
    target = TuningTarget(num_images=len(corpus), min_similarity=0.8, target_recall=0.9)
    best = plans(corpus[:4000], target, settings=SETTINGS, costs=COSTS)[0]
    does = measured(corpus, best, near_pairs(corpus[4000:], 0.8, seed=1))

    assert isclose(best.prediction.walked, does.walked, rel_tol=0.25)
    assert isclose(best.prediction.candidates, does.candidates, rel_tol=0.15)
    assert isclose(best.prediction.recall, does.recall, abs_tol=0.03)
    assert isclose(best.prediction.false_ratio, does.false_ratio, abs_tol=0.05)
    assert isclose(best.prediction.term_block_bytes, does.term_block_bytes, rel_tol=0.15)


def test_what_a_family_loads_counts_for_a_small_corpus(corpus: NDArray[np.float32]) -> None:
    """The start of min-hashes is spread over the images, so that it is much for few; other families have none."""

    def hash_s(params: TermParams, num_images: int) -> float:
        target = TuningTarget(num_images=num_images, min_similarity=0.9, target_recall=0.3)
        return plans(corpus[:4000], target, settings=[params], costs=COSTS)[0].prediction.hash_s

    polytopes, _, minhash, _ = SETTINGS

    assert hash_s(minhash, 1000) > START_S["minhash"] / 1000
    assert hash_s(minhash, 100_000) < START_S["minhash"] / 10_000
    assert hash_s(polytopes, 1000) < START_S["minhash"] / 10_000


def test_a_crowd_does_not_change_the_plan(corpus: NDArray[np.float32]) -> None:
    """With as many near-identical images as others the plan is that of the others alone."""
    rng = np.random.default_rng(1)
    crowd = unit(corpus[:1] + 0.01 * rng.standard_normal((4000, 64), dtype=np.float32))
    mixed = rng.permutation(np.concatenate([corpus[:4000], crowd]))
    target = TuningTarget(num_images=12_000, min_similarity=0.8, target_recall=0.9)
    alone = plans(corpus[:4000], target, settings=SETTINGS[:2], costs=COSTS)[0]
    among = plans(mixed, replace(target, num_images=24_000), settings=SETTINGS[:2], costs=COSTS)[0]

    assert among.terms == alone.terms
    assert isclose(among.prediction.walked, alone.prediction.walked, rel_tol=0.1)


def test_a_sample_that_is_all_crowd_is_refused(corpus: NDArray[np.float32]) -> None:
    """Nothing can be tuned on near-identical images alone."""
    with pytest.raises(ParameterError, match="images of the sample are outside crowds"):
        plans(np.repeat(corpus[:1], 2000, axis=0), TuningTarget(num_images=2000), settings=SETTINGS, costs=COSTS)


def test_every_plan_reaches_the_target_and_the_cheapest_is_first(corpus: NDArray[np.float32]) -> None:
    """Plans come in the order of their core-seconds, one for each setting, none below the target recall."""
    found = plans(corpus[:4000], TuningTarget(num_images=100_000, target_recall=0.9), settings=SETTINGS, costs=COSTS)
    seconds = [plan.prediction.core_s for plan in found]

    assert seconds == sorted(seconds)
    assert 2 <= len(found) <= len(SETTINGS)
    assert all(plan.prediction.recall >= 0.9 for plan in found)


def test_a_larger_corpus_gets_longer_terms_or_stricter_sketches(corpus: NDArray[np.float32]) -> None:
    """Pairs walked per image grow with the corpus, so at a thousandfold size the plan walks a smaller share of them."""
    settings = SETTINGS[:2]
    small, large = (
        plans(corpus[:4000], TuningTarget(num_images=num, target_recall=0.9), settings=settings, costs=COSTS)[0]
        for num in (20_000, 20_000_000)
    )

    assert large.terms.bits_per_term > small.terms.bits_per_term
    assert large.prediction.walked < 1000 * small.prediction.walked


def test_unverified_plans_ask_for_more_shared_terms(corpus: NDArray[np.float32]) -> None:
    """Where codes are not compared, enough terms must be shared that few candidates are false."""
    target = TuningTarget(num_images=12_000, target_recall=0.8, verified=False, max_false_ratio=0.3)
    best = plans(corpus[:4000], target, settings=SETTINGS, costs=COSTS)[0]

    assert not best.verified
    assert best.prediction.false_ratio <= 0.3
    assert best.prediction.verify_s == 0.0


@pytest.mark.parametrize(("num_tables", "min_shared_terms"), [(1, 1), (3, 1), (3, 2), (5, 3), (6, 1)])
def test_the_chance_to_share_equals_counting_every_draw(num_tables: int, min_shared_terms: int) -> None:
    """The hypergeometric tail equals the share of all draws of tables that hold enough shared ones."""
    for shared in range(7):
        draws = [len(set(draw) & set(range(shared))) for draw in combinations(range(6), num_tables)]
        expected = sum(hits >= min_shared_terms for hits in draws) / len(draws)
        actual = shares_at_least(shared, num_hashed=6, num_tables=num_tables, min_shared_terms=min_shared_terms)

        assert isclose(actual, expected, abs_tol=1e-12)


def test_near_pairs_are_the_samples_own_where_it_has_them(corpus: NDArray[np.float32]) -> None:
    """Every pair lies in the band above the similarity; enough of them are taken from the sample as they are."""
    near = near_pairs(corpus, 0.8)
    cosines = np.einsum("nd,nd->n", near.left, near.right)

    assert not near.planted
    assert cosines.min() >= 0.8 - 1e-4
    assert cosines.max() <= 0.86 + 1e-4


def test_near_pairs_are_planted_where_a_sample_has_none() -> None:
    """Random rows are never near one another, so pairs are made of them, at cosines in the band."""
    near = near_pairs(unit(np.random.default_rng(0).standard_normal((1000, 128)).astype(np.float32)), 0.8)
    cosines = np.einsum("nd,nd->n", near.left, near.right)

    assert near.planted
    assert len(near.left) > 1000
    assert cosines.min() >= 0.8 - 1e-3
    assert cosines.max() <= 0.86 + 1e-3


@pytest.mark.parametrize("dim", [8, 64, 256, 300])
def test_every_default_setting_can_hash(dim: int) -> None:
    """The settings tried by default are valid for embeddings of any dimension, and of all three families."""
    settings = default_settings(dim)

    assert {params.family for params in settings} == {"cross_polytope", "hyperplane", "minhash"}
    assert len(set(settings)) == len(settings)
    assert all(params.dim == dim for params in settings)


def test_a_plan_survives_json(corpus: NDArray[np.float32]) -> None:
    """A plan written to JSON text and read back is equal; something else is refused."""
    plan = plans(corpus[:2000], TuningTarget(num_images=12_000, target_recall=0.5), settings=SETTINGS[:1], costs=COSTS)[
        0
    ]

    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    with pytest.raises(ParameterError, match="this is no plan"):
        Plan.from_json({"terms": {}})


def test_what_cannot_be_tuned_is_said(corpus: NDArray[np.float32]) -> None:
    """Too small a sample, a target that no setting reaches and targets out of range are named."""
    with pytest.raises(ParameterError, match="a sample of 10 embeddings is too small"):
        plans(corpus[:10], TuningTarget(num_images=100), costs=COSTS)
    with pytest.raises(ParameterError, match=r"no setting finds 100% of the pairs of similarity 0.8 with up to 4"):
        plans(
            corpus[:2000],
            TuningTarget(num_images=100, target_recall=0.9999, max_tables=4),
            settings=SETTINGS[1:2],
            costs=COSTS,
        )
    with pytest.raises(ParameterError, match=r"target_recall=1.5 is out of range 0.1..0.9999"):
        TuningTarget(num_images=100, target_recall=1.5)
