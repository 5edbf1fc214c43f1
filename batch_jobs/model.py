"""What made a run's embeddings and what scores their pairs, and what follows from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from batch_jobs.errors import SourceError
from batch_jobs.settings import RunSettings
from batch_jobs.sources import Source, SourceKind, read_embeddings
from embed.embedder_dir import describe_embedder
from embed.pair_scoring import PairScorer, load_pair_scorer
from lsh.candidates import CandidateParams
from lsh.terms import TermParams, terms_for


@dataclass(frozen=True, slots=True)
class Model:
    """What made the embeddings of a run, their dimension, what scores their pairs, and the lowest score of a match.

    `dtype` is the precision in which images are embedded.
    """

    digest: str
    dim: int
    scorer: PairScorer
    scorer_digest: str
    min_score: float
    dtype: str


def with_defaults(
    settings: RunSettings, model: Model, *, num_images: int, before: Mapping[str, Any] = MappingProxyType({})
) -> RunSettings:
    """The settings with what they leave open: the `terms` and `candidates` of earlier runs where `before` has them.

    Otherwise terms for the number of images, and sketches that lose few matches of the lowest similarity. Raises
    ParameterError for what another version wrote.
    """
    terms = settings.terms or (TermParams.from_json(before["terms"]) if "terms" in before else terms_for(num_images))
    candidates = settings.candidates or (
        CandidateParams(**before["candidates"])
        if "candidates" in before
        else CandidateParams.for_similarity(model.scorer.lowest_similarity(model.min_score))
    )
    return replace(settings, terms=replace(terms, dim=model.dim), candidates=candidates)


def model_of(source: Source, settings: RunSettings) -> Model:
    """Where the source's embeddings come from, and how their pairs are scored.

    Embeddings that the embedder did not make are scored by their cosine; raises SourceError when no threshold is given.
    """
    spec = describe_embedder(settings.embedder)
    dtype = settings.dtype or spec.default_dtype
    if source.kind is SourceKind.EMBEDDINGS:
        given = read_embeddings(source.path)
        if given.digest != spec.digest:
            if settings.min_score is None:
                raise SourceError(
                    f"source {settings.source} was embedded by {given.digest[:12]}, for which no threshold is known; "
                    "give --min-score, for example 0.8"
                )
            dim = given.embeddings.shape[1]
            return Model(given.digest, dim, PairScorer(), given.digest, settings.min_score, dtype)
    min_score = spec.min_score if settings.min_score is None else settings.min_score
    return Model(spec.digest, spec.dim, load_pair_scorer(spec), spec.scorer_digest, min_score, dtype)
