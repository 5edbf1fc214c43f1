"""Every intermediate result of one image or of a pair of images in a run, and what decided about them.

An image: catalogue row or reject, byte-identical images, terms with the sizes of their buckets, candidates with shared
terms, sketch distance, similarity and score, the cluster and why. A pair: the same steps for the two, and the step that
decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from batch_jobs.cluster_view import view_cluster
from batch_jobs.decisions import Decision, DecisionKind, Decisions
from batch_jobs.errors import SourceError
from batch_jobs.run_tables import Row, RunTables
from batch_jobs.select_matches import term_overlap
from lsh.buckets import Buckets
from lsh.codes import pair_cosines, quantize
from lsh.leaders import candidates_with_leaders
from lsh.sketches import WORDS_PER_SKETCH, hamming_distances, long_sketches
from lsh.terms import TermHasher

MOST_MATCHES = "of those that match one another it has the most matches"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the run knows of one image before it is compared. `original_id` is the first image with its bytes."""

    image_id: str
    catalogue: Row | None
    reject: Row | None
    original_id: str | None
    copies: tuple[str, ...]
    is_embedded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """An image in a bucket of the explained one.

    `is_candidate`: near enough by sketch, and compared in some bucket. `similarity` and `score` are None for those that
    are none; `outcome` says what came of it.
    """

    image_id: str
    shared_terms: int
    sketch_distance: int
    is_candidate: bool
    similarity: float | None
    score: float | None
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageExplanation:
    """All about one image. `bucket_sizes` has one entry a term, `num_neighbours` counts those in any of its buckets."""

    run_id: str
    image: ImageFacts
    bucket_sizes: tuple[int, ...] = ()
    max_bucket_size: int = 0
    num_neighbours: int = 0
    num_candidates: int = 0
    num_matches: int = 0
    min_score: float = 0.0
    neighbours: tuple[Neighbour, ...] = ()
    canonical_id: str | None = None
    verdict: str
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairExplanation:
    """All about a pair. Figures are None where the run did not come to them; `in_one_cluster` is the outcome.

    `view_similarity` is that of one image with a part of the other, where that made them a match.
    """

    run_id: str
    left: ImageFacts
    right: ImageFacts
    shared_terms: int | None = None
    min_shared_terms: int | None = None
    sketch_distance: int | None = None
    max_sketch_distance: int | None = None
    similarity: float | None = None
    score: float | None = None
    min_score: float | None = None
    view_similarity: float | None = None
    is_match: bool = False
    in_one_cluster: bool = False
    verdict: str
    decisions: tuple[Decision, ...] = ()


def explain_image(
    tables: RunTables, image_id: str, decisions: Decisions, *, num_neighbours: int = 20
) -> ImageExplanation:
    """Explain one image; raises SourceError for an id that the run has never seen."""
    facts = _facts(tables, image_id)
    about = decisions.about([image_id])
    run_id = tables.record.run_id
    if facts.catalogue is None or not facts.is_embedded:
        return ImageExplanation(run_id=run_id, image=facts, verdict=_not_compared(facts), decisions=about)
    doc = facts.catalogue["original_doc"]
    embedding = _required_embedding(tables, doc)
    terms = TermHasher(tables.term_params).terms(embedding)[0]
    buckets = tables.buckets(terms)
    sizes = dict(zip(buckets.terms.tolist(), buckets.sizes.tolist(), strict=True))
    neighbours = _neighbours(tables, buckets, doc)
    view = view_cluster(tables, image_id, decisions)
    return ImageExplanation(
        run_id=run_id,
        image=facts,
        bucket_sizes=tuple(sizes.get(term, 0) for term in terms.tolist()),
        max_bucket_size=tables.candidate_params.max_bucket_size,
        num_neighbours=len(neighbours),
        num_candidates=sum(one.is_candidate for one in neighbours),
        num_matches=len(tables.edges([doc])),
        min_score=tables.record.min_score,
        neighbours=tuple(neighbours[:num_neighbours]),
        canonical_id=view.canonical_id if len(view.members) > 1 else None,
        verdict=_why_in_cluster(tables, facts.catalogue, image_id),
        decisions=about,
    )


def explain_pair(tables: RunTables, left_id: str, right_id: str, decisions: Decisions) -> PairExplanation:
    """Explain a pair; raises SourceError for an id that the run has never seen, or one id given twice."""
    if left_id == right_id:
        raise SourceError(f"{left_id} is given twice; name two images, or one to explain it alone")
    facts = [_facts(tables, image_id) for image_id in (left_id, right_id)]
    about = tuple(one for one in decisions.about([left_id]) if right_id in one.labels)
    found: dict[str, Any] = {"run_id": tables.record.run_id, "left": facts[0], "right": facts[1], "decisions": about}
    for one in facts:
        if one.catalogue is None or not one.is_embedded:
            return PairExplanation(**found, verdict=f"{one.image_id}: {_not_compared(one)}")
    membership = tables.membership([left_id, right_id])
    canonicals = [membership[one]["canonical_id"] if one in membership else one for one in (left_id, right_id)]
    found["in_one_cluster"] = canonicals[0] == canonicals[1]
    docs = [one.catalogue["original_doc"] for one in facts if one.catalogue is not None]
    if docs[0] == docs[1]:
        return PairExplanation(**found, verdict="byte-identical: embedded once, compared with nobody, one cluster")
    found |= _measured(tables, docs)
    return PairExplanation(**found, verdict=_pair_verdict(found, canonicals, (left_id, right_id)))


def _facts(tables: RunTables, image_id: str) -> ImageFacts:
    row = tables.image(image_id)
    is_embedded = row is not None and tables.embedding(row["original_doc"]) is not None
    reject = None if is_embedded else tables.reject(image_id)
    if row is None and reject is None:
        raise SourceError(
            f"run {tables.record.run_id} has never seen {image_id}; image ids are those of its catalogue, "
            "for a folder the path below it"
        )
    copies = tables.copies(row["original_doc"]) if row else []
    return ImageFacts(
        image_id=image_id,
        catalogue=row,
        reject=reject,
        original_id=copies[0] if copies else None,
        copies=tuple(one for one in copies if one != image_id),
        is_embedded=is_embedded,
    )


def _not_compared(facts: ImageFacts) -> str:
    if facts.reject is not None:
        detail = facts.reject["detail"] or "no detail"
        return f"rejected by {facts.reject['stage']}, {facts.reject['reason']}: {detail}"
    return "it has no embedding, so it is compared with nothing"


def _required_embedding(tables: RunTables, doc: int) -> NDArray[np.float32]:
    embedding = tables.embedding(doc)
    if embedding is None:
        raise SourceError(f"doc {doc} of run {tables.record.run_id} has no embedding")
    return embedding


@dataclass(frozen=True, slots=True)
class _Scored:
    """A candidate's shared terms as its buckets counted them, its similarity and its score."""

    shared_terms: int
    similarity: float
    score: float


def _neighbours(tables: RunTables, buckets: Buckets, doc: int) -> list[Neighbour]:
    """All docs in the buckets: best score first, then most shared terms."""
    own_row = int(np.searchsorted(buckets.docs, np.uint64(doc)))
    own_sketches = np.repeat(buckets.sketches[own_row : own_row + 1], buckets.docs.size, axis=0)
    distances = hamming_distances(buckets.sketches, own_sketches).tolist()
    shared_terms = np.bincount(buckets.doc_rows, minlength=buckets.docs.size).tolist()
    candidates = _candidates(tables, buckets, doc)
    max_distance = tables.candidate_params.max_sketch_distance
    clusters = _clusters_of_matches(tables, doc)
    docs = buckets.docs.tolist()
    names = {other: row["image_id"] for other, row in tables.images(docs).items()}
    found = []
    for row, other in enumerate(docs):
        if other == doc:
            continue
        candidate = candidates.get(other)
        found.append(
            Neighbour(
                image_id=names[other],
                shared_terms=shared_terms[row],
                sketch_distance=distances[row],
                is_candidate=candidate is not None,
                similarity=candidate.similarity if candidate else None,
                score=candidate.score if candidate else None,
                outcome=clusters.get(other)
                or _outcome(
                    candidate,
                    is_near=distances[row] <= max_distance,
                    min_shared_terms=tables.selection["min_shared_terms"],
                ),
            )
        )
    return sorted(found, key=lambda one: (one.score is None, -(one.score or 0.0), -one.shared_terms, one.image_id))


def _candidates(tables: RunTables, buckets: Buckets, doc: int) -> dict[int, _Scored]:
    """The docs that some bucket of `doc` made its candidates.

    By the very kernel of the step, on these buckets alone: what is cut in an oversized one is cut here.
    """
    found = candidates_with_leaders(buckets, tables.candidate_params, tables.leaders)
    is_own = np.any(found.pairs == np.uint64(doc), axis=1)
    lefts, rights = found.pairs[is_own].T
    others = np.where(lefts == np.uint64(doc), rights, lefts).astype(np.int64)
    counted = found.shared_terms[is_own]
    similarities, scores = _scores(tables, doc, others, counted)
    return {
        other: _Scored(*figures)
        for other, *figures in zip(
            others.tolist(), counted.tolist(), similarities.tolist(), scores.tolist(), strict=True
        )
    }


def _clusters_of_matches(tables: RunTables, doc: int) -> dict[int, str]:
    """What became of each match of a doc."""
    ends = {end for edge in tables.edges([doc]) for end in (edge["left_doc"], edge["right_doc"])}
    names = {other: row["image_id"] for other, row in tables.images({*ends, doc}).items()}
    membership = tables.membership(names.values())
    canonical = {
        other: membership[name]["canonical_id"] if name in membership else name for other, name in names.items()
    }
    return {
        other: "match, same cluster"
        if canonical[other] == canonical[doc]
        else f"match, in the cluster of {canonical[other]}"
        for other in ends - {doc}
    }


def _outcome(candidate: _Scored | None, *, is_near: bool, min_shared_terms: int) -> str:
    """Why a doc in a bucket is no match."""
    if candidate is None:
        return "cut in an oversized bucket" if is_near else "too far apart by sketch"
    return "shares too few terms" if candidate.shared_terms < min_shared_terms else "score too low"


def _scores(
    tables: RunTables, doc: int, others: NDArray[np.int64], shared_terms: NDArray[np.uint32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Similarity and score of a doc with others, as the step `select` computes them."""
    if not tables.selection["verified"]:
        overlap = term_overlap(shared_terms, num_tables=tables.term_params.num_tables)
        return overlap, overlap
    docs, codes = tables.codes(np.append(others, doc))
    left = np.full(len(others), np.searchsorted(docs, doc))
    right = np.searchsorted(docs, others)
    similarities = pair_cosines(codes, codes, left, right)
    projected = tables.scorer.project(codes)
    return similarities, tables.scorer.scores(similarities, projected, projected, left, right)


def _measured(tables: RunTables, docs: list[int]) -> dict[str, Any]:
    """What each step counted for a pair of originals, computed again from their embeddings."""
    params, selection = tables.term_params, tables.selection
    rows = np.concatenate([_required_embedding(tables, doc) for doc in docs])
    terms = TermHasher(params).terms(rows)
    sketches = long_sketches(rows, num_words=WORDS_PER_SKETCH, seed=params.seed)
    shared_terms = int(np.sum(terms[0] == terms[1]))
    if selection["verified"]:
        codes, scorer, zero, one = quantize(rows), tables.scorer, np.array([0]), np.array([1])
        similarities = pair_cosines(codes, codes, zero, one)
        projected = scorer.project(codes)
        scores = scorer.scores(similarities, projected, projected, zero, one)
    else:
        similarities = scores = term_overlap(np.array([shared_terms], np.uint32), num_tables=params.num_tables)
    edge = next((one for one in tables.edges([docs[0]]) if {one["left_doc"], one["right_doc"]} == set(docs)), None)
    is_by_view = edge is not None and scores[0] < selection["min_score"]
    return {
        "shared_terms": shared_terms,
        "min_shared_terms": selection["min_shared_terms"],
        "sketch_distance": int(hamming_distances(sketches[:1], sketches[1:])[0]),
        "max_sketch_distance": tables.candidate_params.max_sketch_distance,
        "similarity": float(similarities[0]),
        "score": float(scores[0]),
        "min_score": selection["min_score"],
        "view_similarity": edge["similarity"] if edge and is_by_view else None,
        "is_match": edge is not None,
    }


def _pair_verdict(found: dict[str, Any], canonicals: list[str], ids: tuple[str, str]) -> str:
    """The step that decided; the decisions by hand are those that hold now."""
    by_hand = [one for one in found["decisions"] if set(ids) <= set(one.labels)]
    if found["in_one_cluster"]:
        merged = next((one for one in by_hand if one.kind is DecisionKind.MERGE), None)
        if merged is not None:
            return f"one cluster: merged by hand (decision {merged.number})"
        if canonicals[0] in ids:
            return "one cluster: they match, and one of them is its canonical"
        return f"one cluster: both match its canonical {canonicals[0]}"
    split = next((one for one in by_hand if one.kind is DecisionKind.SPLIT), None)
    if split is not None and split.labels[ids[0]] != split.labels[ids[1]]:
        return f"kept apart by hand (decision {split.number})"
    if found["is_match"]:
        return (
            f"a match, but in different clusters: {ids[0]} follows {canonicals[0]}, {ids[1]} follows {canonicals[1]}, "
            "which each fits best"
        )
    return _why_no_match(found)


def _why_no_match(found: dict[str, Any]) -> str:
    """The first step that a pair did not pass."""
    failed = (
        (not found["shared_terms"], "never compared: they share no term"),
        (found["sketch_distance"] > found["max_sketch_distance"], "never scored: too far apart by sketch"),
        (found["shared_terms"] < found["min_shared_terms"], "never scored: they share too few terms"),
        (found["score"] < found["min_score"], "no match: the score is below the lowest score"),
    )
    return next((said for has_failed, said in failed if has_failed), "never compared: cut in an oversized bucket")


def _why_in_cluster(tables: RunTables, image: Row, image_id: str) -> str:
    edges = tables.edges([image["original_doc"]])
    row = tables.membership([image_id]).get(image_id)
    if row is None:
        if not edges:
            return "in no cluster: it matches nothing"
        return "in no cluster: all that it matches fits another canonical better, or was split from it by hand"
    if row["is_canonical"]:
        why = "clusters keep theirs from night to night" if tables.is_updated else MOST_MATCHES
        return f"canonical of {row['size']:,} images: {why}"
    if tables.copies(image["original_doc"])[0] != image_id:
        return f"in the cluster of {row['canonical_id']}, with the image that has its bytes"
    ends = {end for edge in edges for end in (edge["left_doc"], edge["right_doc"])} - {image["original_doc"]}
    rows = tables.membership(one["image_id"] for one in tables.images(ends).values())
    heads = sorted({one["image_id"] for one in rows.values() if one["is_canonical"]})
    if row["canonical_id"] not in heads:
        return f"in the cluster of {row['canonical_id']} with an image that was merged with it by hand"
    others = f", the best of {len(heads)} canonicals that it matches" if len(heads) > 1 else ""
    return f"in the cluster of {row['canonical_id']}, which it matches with score {row['score']:.4f}{others}"
