"""Rules of explanations: what is said of an image or a pair is what the run's steps have done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batch_jobs.cluster_view import preview, view_cluster
from batch_jobs.decisions import Decision, DecisionKind, Decisions, read_decisions, record_decision
from batch_jobs.errors import SourceError
from batch_jobs.explanation import explain_image, explain_pair
from batch_jobs.run_tables import RunTables
from lsh.candidates import CandidateParams
from tests.night import clusters_of, family, pets, run_night


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> RunTables:
    """The pets, with a byte-identical copy of a cat and a file that was rejected."""
    workspace = tmp_path_factory.mktemp("explained")
    return RunTables(workspace, run_night(workspace, pets(), copies={"cat-9": "cat-0"}, rejects=["torn"]))


def decide(workspace: Path, kind: DecisionKind, *groups: tuple[str, ...]) -> Decision:
    return record_decision(workspace, Decision(kind=kind, groups=groups, by="ann", reason="seen"))


def test_an_image_is_explained_with_all_that_it_met(tables: RunTables) -> None:
    """Its copies, a bucket a table, its matches with their scores, and its cluster."""
    found = explain_image(tables, "cat-2", Decisions())
    assert found.image.is_embedded
    assert len(found.bucket_sizes) == tables.term_params.num_tables
    assert min(found.bucket_sizes) >= 1
    assert found.num_matches == 3
    matches = [one.image_id for one in found.neighbours if one.outcome == "match, same cluster"]
    assert sorted(matches) == ["cat-0", "cat-1", "cat-3"]
    assert found.canonical_id == "cat-0"
    assert found.verdict.startswith("in the cluster of cat-0, which it matches with score 0.9")


def test_scores_are_those_of_the_matches(tables: RunTables) -> None:
    """Every candidate's figures are those that the run has written for the match."""
    edges = {
        frozenset((edge["left_doc"], edge["right_doc"])): edge for edge in tables.edges(range(tables_size(tables)))
    }
    for image_id in ("cat-1", "dog-0"):
        doc = tables.required_image(image_id)["doc"]
        for one in explain_image(tables, image_id, Decisions()).neighbours:
            edge = edges.get(frozenset((doc, tables.required_image(one.image_id)["doc"])))
            assert (edge is not None) == one.outcome.startswith("match")
            if edge is not None:
                assert (one.similarity, one.score, one.shared_terms) == (
                    edge["similarity"],
                    edge["score"],
                    edge["shared_terms"],
                )


def tables_size(tables: RunTables) -> int:
    catalogued = tables.record.step("catalogue")
    assert catalogued is not None
    return catalogued.num_rows["catalogue"]


def test_the_canonical_says_so(tables: RunTables) -> None:
    """The head of a cluster is told by its matches; copies are listed."""
    found = explain_image(tables, "cat-0", Decisions())
    assert found.verdict.startswith("canonical of 5 images")
    assert found.image.copies == ("cat-9",)


def test_images_that_are_alone_or_rejected_say_why(tables: RunTables) -> None:
    """No match, a copy, or a reject: each has its sentence."""
    assert explain_image(tables, "fish", Decisions()).verdict == "in no cluster: it matches nothing"
    assert "with the image that has its bytes" in explain_image(tables, "cat-9", Decisions()).verdict
    assert explain_image(tables, "torn", Decisions()).verdict.startswith("rejected by catalogue, truncated")


def test_an_unknown_image_is_refused(tables: RunTables) -> None:
    """The message says what image ids are."""
    with pytest.raises(SourceError, match="has never seen bird"):
        explain_image(tables, "bird", Decisions())
    with pytest.raises(SourceError, match="given twice"):
        explain_pair(tables, "fish", "fish", Decisions())


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        ("cat-0", "cat-1", "one cluster: they match, and one of them is its canonical"),
        ("cat-1", "cat-2", "one cluster: both match its canonical cat-0"),
        ("cat-0", "cat-9", "byte-identical: embedded once, compared with nobody, one cluster"),
        ("cat-0", "torn", "torn: rejected by catalogue, truncated: it ends in the middle"),
    ],
)
def test_a_pair_is_explained_by_the_step_that_decided(tables: RunTables, left: str, right: str, verdict: str) -> None:
    """Together by a match, by a canonical or by bytes, or apart because one is no image."""
    assert explain_pair(tables, left, right, Decisions()).verdict == verdict


def test_strangers_are_told_by_the_first_step_that_they_fail(tables: RunTables) -> None:
    """Sharing no term, too far by sketch, or scored too low: the figures agree with the verdict."""
    found = explain_pair(tables, "cat-0", "dog-0", Decisions())
    assert not found.in_one_cluster
    assert found.shared_terms is not None
    assert found.sketch_distance is not None
    assert found.score is not None
    if not found.shared_terms:
        assert found.verdict == "never compared: they share no term"
    else:
        assert found.sketch_distance > (found.max_sketch_distance or 0)
        assert found.verdict == "never scored: too far apart by sketch"
    assert found.score < 0.8


def test_a_score_below_the_threshold_is_said(tmp_path: Path) -> None:
    """Cats at a threshold that none reaches: compared, scored, no match."""
    strict = RunTables(tmp_path, run_night(tmp_path, pets(), min_score=0.9999))
    assert (
        explain_pair(strict, "cat-0", "cat-1", Decisions()).verdict == "no match: the score is below the lowest score"
    )
    assert {one.outcome for one in explain_image(strict, "cat-0", Decisions()).neighbours if one.is_candidate} == {
        "score too low"
    }


def test_what_an_oversized_bucket_cut_is_said(tmp_path: Path) -> None:
    """With room for two in a bucket, neighbours that were never compared are told from those that were."""
    crowd = {f"i{place:02d}": row for place, row in enumerate(family(5, 12))}
    params = CandidateParams(max_bucket_size=2, num_sampled=1)
    cut = RunTables(tmp_path, run_night(tmp_path, crowd, candidates=params))
    edges = {frozenset((edge["left_doc"], edge["right_doc"])) for edge in cut.edges(range(12))}
    outcomes = {one.outcome for doc in range(12) for one in explain_image(cut, f"i{doc:02d}", Decisions()).neighbours}
    assert "cut in an oversized bucket" in outcomes
    for right in range(1, 12):
        found = explain_pair(cut, "i00", f"i{right:02d}", Decisions())
        assert found.is_match == (frozenset((0, right)) in edges)
        if not found.is_match and not found.in_one_cluster:
            assert found.verdict == "never compared: cut in an oversized bucket"


def test_decisions_are_the_reason_where_they_decided(tmp_path: Path) -> None:
    """A split pair and a merged one say so, with the number of the decision."""
    decide(tmp_path, DecisionKind.SPLIT, ("cat-0",), ("cat-1",))
    decide(tmp_path, DecisionKind.MERGE, ("fish", "dog-0"))
    tables = RunTables(tmp_path, run_night(tmp_path, pets()))
    decisions = read_decisions(tmp_path)
    assert explain_pair(tables, "cat-0", "cat-1", decisions).verdict == "kept apart by hand (decision 1)"
    assert explain_pair(tables, "fish", "dog-0", decisions).verdict == "one cluster: merged by hand (decision 2)"
    view = view_cluster(tables, "dog-1", decisions)
    assert {one.image_id: one.why for one in view.members}["fish"] == "merged by hand (decision 2)"
    assert [one.number for one in view.decisions] == [2]
    outsiders = {one.image_id: one.why for one in view_cluster(tables, "cat-0", decisions).outsiders}
    assert outsiders["cat-1"] == "split by hand (decision 1)"


def test_a_cluster_is_viewed_from_any_member(tables: RunTables) -> None:
    """Members come with figures against the canonical; a loner is a cluster of one."""
    view = view_cluster(tables, "cat-9", Decisions())
    assert view.members[0].image_id == view.canonical_id == "cat-0"
    why = {one.image_id: one.why for one in view.members}
    assert why["cat-9"] == "byte-identical to the canonical"
    assert why["cat-3"] == "matches the canonical"
    assert all(one.similarity for one in view.members if one.why == "matches the canonical")
    assert [one.image_id for one in view_cluster(tables, "fish", Decisions()).members] == ["fish"]


def test_a_preview_is_what_the_next_run_makes(tmp_path: Path) -> None:
    """Clusters foretold for new decisions are those of the run that obeys them."""
    tables = RunTables(tmp_path, run_night(tmp_path, pets()))
    decide(tmp_path, DecisionKind.SPLIT, ("cat-0",), ("cat-1",), ("cat-2",), ("cat-3",))
    foretold = preview(tables, read_decisions(tmp_path))
    came = clusters_of(tmp_path, run_night(tmp_path, pets()))
    assert sorted(foretold.values(), key=sorted) == came == [{"dog-0", "dog-1", "dog-2"}]


def test_a_broken_up_cluster_stays_broken_up(tmp_path: Path) -> None:
    """Nights later, with new images that match them all, its images still do not meet."""
    cats = family(1, 8)
    decide(tmp_path, DecisionKind.SPLIT, ("cat-0",), ("cat-1",), ("cat-2",), ("cat-3",))
    for num_new in range(1, 5):
        images = {**pets(), **{f"cat-{place}": cats[place] for place in range(4, 4 + num_new)}}
        for members in clusters_of(tmp_path, run_night(tmp_path, images)):
            assert len(members & {"cat-0", "cat-1", "cat-2", "cat-3"}) <= 1
    assert np.allclose(cats[:4], [pets()[f"cat-{place}"] for place in range(4)], atol=2.0)
