"""Rules of what a run fills in where its settings leave something open."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from batch_jobs.model import Model, with_defaults
from batch_jobs.settings import RunSettings
from embed.pair_scoring import PairScorer
from lsh.candidates import CandidateParams
from lsh.terms import TermParams, terms_for

MODEL = Model("given", 32, PairScorer(), "given", 0.8, "float32")
OPEN = RunSettings(source="given.npz", workspace=Path("workspace"))


def test_terms_follow_the_number_of_images() -> None:
    """Twice as many images get twice as many buckets, of embeddings as long as the model's."""
    settings = with_defaults(OPEN, MODEL, num_images=2_000_000)
    assert settings.terms == replace(terms_for(2_000_000), dim=32)
    assert settings.terms != replace(terms_for(1_000_000), dim=32)


def test_candidates_follow_the_lowest_similarity() -> None:
    """Sketches are as near as those of the farthest match."""
    assert with_defaults(OPEN, MODEL, num_images=9).candidates == CandidateParams.for_similarity(0.8)


def test_what_earlier_runs_had_is_kept() -> None:
    """Matches of known images are not made again, so a corpus that grows goes on with the same terms and candidates."""
    terms, candidates = TermParams(num_tables=8, dim=32), CandidateParams(max_sketch_distance=33)
    before = {"terms": terms.to_json(), "candidates": asdict(candidates)}
    settings = with_defaults(OPEN, MODEL, num_images=2_000_000, before=before)
    assert (settings.terms, settings.candidates) == (terms, candidates)


def test_what_is_given_counts() -> None:
    """A plan overrules both; whether it may is for others to say."""
    terms, candidates = TermParams(num_tables=8, dim=32), CandidateParams(max_sketch_distance=33)
    before = {"terms": TermParams(dim=32).to_json(), "candidates": asdict(CandidateParams())}
    given = replace(OPEN, terms=terms, candidates=candidates)
    assert with_defaults(given, MODEL, num_images=9, before=before) == given
