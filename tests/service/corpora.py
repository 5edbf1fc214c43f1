"""Small generations for the service's tests, written by the real writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lsh.index.publishing import new_generation, promote
from lsh.index.store import FolderStore
from lsh.index.view_similarity import ViewSimilarity
from lsh.index.writing import GenerationSpec, GenerationWriter
from lsh.terms import TermParams
from service.engine import Engine
from service.upload_log import UploadLog

DIM = 64
DIGEST = "ab" * 32
PARAMS = TermParams(num_tables=12, dim=DIM, num_polytopes=2, polytope_dim=64, seed=3)
MIN_SCORE = 0.8


def random_embeddings(num: int, *, seed: int = 0) -> NDArray[np.float32]:
    """`(num, DIM)` float32 unit rows, far from each other."""
    rows = np.random.default_rng(seed).normal(size=(num, DIM)).astype(np.float32)
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def near(embedding: NDArray[np.float32], similarity: float, *, seed: int = 0) -> NDArray[np.float32]:
    """A unit row of a given cosine with another."""
    noise = np.random.default_rng(seed).normal(size=embedding.size)
    noise -= (noise @ embedding) * embedding
    noise /= np.linalg.norm(noise)
    row: NDArray[np.float32] = (similarity * embedding + np.sqrt(1 - similarity**2) * noise).astype(np.float32)
    return row


def image_ids(num: int, *, prefix: str = "image") -> list[str]:
    return [f"{prefix}-{number}" for number in range(num)]


def add_generation(
    index: Path,
    ids: Sequence[str],
    embeddings: NDArray[np.float32],
    *,
    clusters: Mapping[str, Sequence[str]] | None = None,
    digest: str = DIGEST,
    min_score: float = MIN_SCORE,
    scorer_files: Mapping[str, bytes] | None = None,
    views: Mapping[str, NDArray[np.float32]] | None = None,
    view_similarity: ViewSimilarity | None = None,
) -> str:
    """Write a generation; `clusters` gives the members of canonicals, themselves left out. Returns its id.

    `views` gives the `(num_views, dim)` views of some images, which count as `view_similarity` says.
    """
    doc_of = {image_id: doc for doc, image_id in enumerate(ids)}
    views_of = {doc_of[image_id]: rows for image_id, rows in (views or {}).items()}
    owners = np.array(sorted(views_of), dtype=np.int64)
    pairs = [
        (doc_of[member], doc_of[canonical])
        for canonical, members in (clusters or {}).items()
        for member in (canonical, *members)
    ]
    members, canonicals = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    params = TermParams.from_json({**PARAMS.to_json(), "dim": embeddings.shape[1]})
    spec = GenerationSpec(
        num_docs=len(ids),
        term_params=params,
        num_probes=48,
        embedder_digest=digest,
        min_score=min_score,
        scorer_files=scorer_files or {},
        owners=owners,
        view_similarity=view_similarity,
    )
    with new_generation(index) as folder:
        writer = GenerationWriter(folder, spec)
        writer.add_embeddings(np.arange(len(ids)), embeddings)
        for doc in owners.tolist():
            views_of_doc = np.arange(spec.views_of_each)
            writer.add_embeddings(spec.view_rows(np.full(views_of_doc.size, doc), views_of_doc), views_of[doc])
        writer.write_image_ids(ids)
        writer.write_clusters(members, canonicals)
        return writer.finish().generation_id


def add_current_generation(index: Path, *, num_images: int = 200, seed: int = 0) -> str:
    """A promoted generation of `image_ids(num_images)` with `random_embeddings(num_images)`, each image alone."""
    generation_id = add_generation(index, image_ids(num_images), random_embeddings(num_images, seed=seed))
    promote(index, generation_id)
    return generation_id


def open_engine(index: Path, generation_id: str, log: Path) -> Engine:
    """An engine over a generation in a folder, with its own upload log."""
    return Engine(FolderStore(index), generation_id, partial(UploadLog, log))
