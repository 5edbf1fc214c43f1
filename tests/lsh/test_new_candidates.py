"""Rules of the candidates of new docs with known ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lsh import candidates as candidates_module
from lsh import pair_tally
from lsh.blocks import (
    TermPostings,
    decode_pair_blocks,
    decode_term_blocks,
    encode_pair_block,
    encode_term_blocks,
    merged_postings,
)
from lsh.buckets import Buckets
from lsh.candidates import CandidateParams, Candidates, brute_force_candidates
from lsh.errors import FormatError
from lsh.new_candidates import candidates_with_later, joined_buckets, new_candidates
from lsh.pair_tally import PairTally, Spill
from lsh.posting_lists import PostingLists

RANDOM_PARAMS = st.builds(
    CandidateParams,
    max_bucket_size=st.integers(3, 30),
    crowd_size=st.integers(1, 3),
    max_sketch_distance=st.sampled_from([0, 20, 80, 128, 256]),
)


def words(values: Sequence[int]) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def lists_of(docs: NDArray[np.uint64], *, num_terms: int, seed: int, num_words: int = 4) -> PostingLists:
    """Lists of docs with three terms each, whose sketches are of a few kinds; a doc is the same in all lists."""
    kinds = np.random.default_rng(seed).integers(0, 2**64, (5, num_words), dtype=np.uint64)
    rngs = [np.random.default_rng([seed, int(doc)]) for doc in docs]
    terms = np.array([rng.integers(0, num_terms, 3) for rng in rngs]).astype(np.uint64).reshape(-1, 3)
    sketches = np.array([rng.choice(kinds) ^ (np.uint64(1) << rng.integers(0, 64, dtype=np.uint64)) for rng in rngs])
    return lists_with(terms, docs, sketches.astype(np.uint64).reshape(-1, num_words))


def lists_with(terms: NDArray[np.uint64], docs: NDArray[np.uint64], sketches: NDArray[np.uint64]) -> PostingLists:
    return PostingLists.of(Buckets.of(decode_term_blocks(encode_term_blocks(terms, docs, sketches, num_partitions=1))))


def twin(
    known: Sequence[PostingLists], new: PostingLists, params: CandidateParams, removed: NDArray[np.uint64]
) -> Candidates:
    """All docs of the new terms together, in sets."""
    merged = merged_postings([lists.buckets().postings() for lists in (*known, new)])
    is_wanted = np.isin(merged.terms, new.terms) & ~np.isin(merged.docs[merged.doc_rows], removed)
    joined = TermPostings(merged.terms[is_wanted], merged.doc_rows[is_wanted], merged.docs, merged.sketches)
    return brute_force_candidates(Buckets.of(joined), params, first_new_doc=int(new.docs[0]))


def assert_same(actual: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(actual.pairs, expected.pairs)
    np.testing.assert_array_equal(actual.shared_terms, expected.shared_terms)
    for name in ("num_buckets", "largest_bucket", "num_cut_buckets", "num_cut_pairs"):
        assert getattr(actual, name) == getattr(expected, name), name


@given(
    st.integers(0, 80),
    st.integers(1, 20),
    st.integers(1, 4),
    st.integers(1, 25),
    st.sampled_from([1, 4]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    RANDOM_PARAMS,
)
def test_candidates_of_new_docs_equal_those_of_all_buckets(  # noqa: PLR0917 - hypothesis gives them in this order
    num_known: int,
    num_new: int,
    num_blocks: int,
    num_terms: int,
    num_words: int,
    are_mixed: bool,
    seed: int,
    params: CandidateParams,
) -> None:
    """Pairs, shared terms and every count equal the slow twin's, in whatever lists the known docs lie."""
    rng = np.random.default_rng(seed)
    docs = np.cumsum(rng.integers(1, 4, num_known + num_new)).astype(np.uint64)
    known = docs[:num_known]
    shares = (
        [known[start::num_blocks] for start in range(num_blocks)] if are_mixed else np.array_split(known, num_blocks)
    )
    lists = [lists_of(share, num_terms=num_terms, seed=seed, num_words=num_words) for share in shares if share.size]
    new = lists_of(docs[num_known:], num_terms=num_terms, seed=seed, num_words=num_words)
    removed = known[rng.random(num_known) < 0.2]

    assert_same(new_candidates(iter(lists), new, params, removed_docs=removed), twin(lists, new, params, removed))


@given(st.integers(0, 60), st.integers(1, 40), st.integers(1, 25), st.integers(0, 2**32 - 1), RANDOM_PARAMS)
def test_without_pairs_among_the_new_all_others_stay(
    num_known: int, num_new: int, num_terms: int, seed: int, params: CandidateParams
) -> None:
    """`among_new=False` leaves out the pairs of two new docs and no other, in regular buckets and in those cut."""
    docs = np.arange(num_known + num_new, dtype=np.uint64)
    *known, new = (lists_of(part, num_terms=num_terms, seed=seed) for part in np.split(docs, [num_known]) if part.size)

    every = new_candidates(known, new, params, removed_docs=words([]))
    found = new_candidates(known, new, params, removed_docs=words([]), among_new=False)

    has_known = every.pairs[:, 0] < num_known
    np.testing.assert_array_equal(found.pairs, every.pairs[has_known])
    np.testing.assert_array_equal(found.shared_terms, every.shared_terms[has_known])


@given(st.integers(1, 80), st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**32 - 1), st.booleans())
def test_known_docs_may_lie_behind_the_new(
    num_known: int, num_new: int, num_blocks: int, seed: int, spills: bool
) -> None:
    """The pairs are those of the other way round, left below right, where no bucket is cut."""
    rng = np.random.default_rng(seed)
    params = CandidateParams(max_bucket_size=1000, crowd_size=1000, max_sketch_distance=80)
    docs = np.cumsum(rng.integers(1, 4, num_known + num_new)).astype(np.uint64)
    new = lists_of(docs[:num_new], num_terms=20, seed=seed)
    known = docs[num_new:] + np.uint64(1 << 40)
    is_removed = rng.random(num_known) < 0.2
    later = [lists_of(part, num_terms=20, seed=seed) for part in np.array_split(known, num_blocks) if part.size]
    kept = known[~is_removed] if not is_removed.all() else known[:0]
    spilled: list[bytes] = []

    def spill(pairs: NDArray[np.uint64], shared_terms: NDArray[np.uint32]) -> None:
        spilled.append(encode_pair_block(pairs, shared_terms))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_tally, "MAX_TALLIED", 8 if spills else 1 << 24)
        found = candidates_with_later(later, new, params, removed_docs=known[is_removed], spill=spill)
    pairs, shared_terms = decode_pair_blocks([*spilled, encode_pair_block(found.pairs, found.shared_terms)])

    expected = Candidates.of(PairTally(docs), num_buckets=0, largest_bucket=0, num_cut_buckets=0, num_cut_pairs=0)
    if kept.size:
        kept_lists = lists_of(kept, num_terms=20, seed=seed)
        expected = new_candidates([new], kept_lists, params, removed_docs=words([]), among_new=False)
    np.testing.assert_array_equal(pairs, expected.pairs)
    np.testing.assert_array_equal(shared_terms, expected.shared_terms)


@pytest.mark.parametrize("among_new", [False, True])
@pytest.mark.parametrize("num_known", [0, 500])
def test_spills_and_the_rest_are_all_candidates(
    monkeypatch: pytest.MonkeyPatch, *, num_known: int, among_new: bool
) -> None:
    """What is spilled and what comes back are together the same pairs, sharing the same terms."""
    docs = np.arange(600, dtype=np.uint64)
    *known, new = (lists_of(part, num_terms=40, seed=3) for part in np.split(docs, [num_known]) if part.size)
    params = CandidateParams(max_sketch_distance=80)
    blocks: list[bytes] = []

    def found(spill: Spill | None) -> Candidates:
        return new_candidates(known, new, params, removed_docs=words([]), among_new=among_new, spill=spill)

    expected = found(None)
    monkeypatch.setattr(candidates_module, "MIN_KEYS_PER_CHUNK", 50)
    monkeypatch.setattr(pair_tally, "MAX_TALLIED", 100)
    rest = found(lambda pairs, shared_terms: blocks.append(encode_pair_block(pairs, shared_terms)))
    pairs, shared_terms = decode_pair_blocks([*blocks, encode_pair_block(rest.pairs, rest.shared_terms)])

    assert len(rest.pairs) < 100
    assert_same(replace(rest, pairs=pairs, shared_terms=shared_terms), expected)


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tallying after every few buckets gives what tallying once gives."""
    docs = np.arange(600, dtype=np.uint64)
    known = [lists_of(share, num_terms=40, seed=3) for share in np.array_split(docs[:500], 3)]
    new = lists_of(docs[500:], num_terms=40, seed=3)
    params = CandidateParams(max_sketch_distance=80)
    none = np.empty(0, np.uint64)
    expected = twin(known, new, params, none)
    monkeypatch.setattr(candidates_module, "MIN_KEYS_PER_CHUNK", 50)

    assert len(expected.pairs) > 500
    assert_same(new_candidates(known, new, params, removed_docs=none), expected)


def test_a_crowd_among_regular_buckets_is_cut() -> None:
    """Where some buckets are crowded and others are not, both have the pairs and counts of the slow twin."""
    rng = np.random.default_rng(5)
    docs = np.arange(3000, dtype=np.uint64)
    terms = rng.integers(0, 200, (3000, 3), dtype=np.uint64)
    sketches = rng.integers(0, 2**64, (3000, 4), dtype=np.uint64)
    terms[::3, 0], sketches[::3] = 7, sketches[0]
    *known, new = (
        lists_with(terms[rows], docs[rows], sketches[rows]) for rows in np.split(np.arange(3000), [1300, 2500])
    )
    params, none = CandidateParams(), np.empty(0, np.uint64)
    found = new_candidates(known, new, params, removed_docs=none)

    assert 0 < found.num_cut_buckets < found.num_buckets
    assert_same(found, twin(known, new, params, none))


def test_new_docs_that_share_no_term_meet_one_another() -> None:
    """Known lists without a term of the new ones change nothing."""
    none = np.empty(0, np.uint64)
    terms, sketches = np.array([[1], [2], [2]], np.uint64), np.zeros((3, 4), np.uint64)
    known = lists_with(terms[:1], words([0]), sketches[:1])
    new = lists_with(terms[1:], words([4, 6]), sketches[1:])

    assert new_candidates([known], new, CandidateParams(), removed_docs=none).pairs.tolist() == [[4, 6]]


def test_lists_of_other_runs_are_refused() -> None:
    """Known lists whose sketches have another length raise FormatError."""
    terms, none = words([5]).reshape(1, 1), np.empty(0, np.uint64)
    known = lists_with(terms, words([1]), np.zeros((1, 2), np.uint64))
    new = lists_with(terms, words([9]), np.zeros((1, 4), np.uint64))

    with pytest.raises(FormatError, match="different runs"):
        new_candidates([known], new, CandidateParams(), removed_docs=none)


def postings_of(buckets: Buckets) -> list[tuple[int, int]]:
    postings = buckets.postings()
    return list(zip(postings.terms.tolist(), postings.docs[postings.doc_rows].tolist(), strict=True))


@given(
    st.sets(st.integers(0, 300), min_size=1, max_size=25),
    st.integers(1, 25),
    st.integers(1, 3),
    st.sets(st.integers(0, 300)),
)
def test_joined_lists_hold_the_terms_of_the_new(
    docs: set[int], num_new: int, num_known_lists: int, removed: set[int]
) -> None:
    """Every posting of a term that a new doc has, and no other; removed docs are left out of the known."""
    known, new = sorted(docs)[:-num_new], sorted(docs)[-num_new:]
    removed &= set(known)
    known_lists = [
        lists_of(words(known[start::num_known_lists]), num_terms=9, seed=1)
        for start in range(num_known_lists)
        if known[start::num_known_lists]
    ]
    new_lists = lists_of(words(new), num_terms=9, seed=1)
    joined = joined_buckets(iter(known_lists), new_lists, removed_docs=words(sorted(removed)))
    everything = postings_of(lists_of(words(sorted(docs)), num_terms=9, seed=1).buckets())
    new_terms = {term for term, doc in everything if doc in new}

    assert postings_of(joined) == [(term, doc) for term, doc in everything if term in new_terms and doc not in removed]
    assert set(joined.docs.tolist()) >= set(new)
