"""A small corpus in families, and generations made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.index.layout import params_for
from lsh.index.queries import Found
from lsh.index.view_similarity import ViewSimilarity
from lsh.index.writing import GenerationSpec, GenerationWriter

NUM_DOCS = 600
DIM = 48


@dataclass(frozen=True, slots=True)
class Corpus:
    """`embeddings` `(n, dim)` unit rows; `members` and `canonicals` of its clusters; docs without an embedding."""

    embeddings: NDArray[np.float32]
    image_ids: list[str]
    members: NDArray[np.int64]
    canonicals: NDArray[np.int64]
    rejected: NDArray[np.int64]
    copies: NDArray[np.int64]
    originals: NDArray[np.int64]

    @property
    def embedded(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.embeddings)), np.concatenate([self.rejected, self.copies]))


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return result


def make_corpus(num_docs: int = NUM_DOCS, *, seed: int = 0) -> Corpus:
    """Families of 10 around random centres; the first of some families is canonical of its first members."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_docs // 10, DIM))
    spread = rng.uniform(0.1, 1.0, (num_docs, 1))
    embeddings = unit(np.repeat(centres, 10, axis=0) + spread * rng.standard_normal((num_docs, DIM)))
    heads = np.arange(0, num_docs // 2, 10)
    members = np.concatenate([np.arange(head, head + 2 + head // 10 % 7) for head in heads])
    return Corpus(
        embeddings=embeddings,
        image_ids=[f"{'ü' if doc % 3 else 'photos'}/{(doc * 7919) % num_docs:04d}.jpg" for doc in range(num_docs)],
        members=members,
        canonicals=members // 10 * 10,
        rejected=np.array([num_docs - 1, num_docs - 5]),
        copies=np.array([num_docs - 2]),
        originals=np.array([3]),
    )


OWNERS = np.arange(5, 300, 7)
VIEW_SIMILARITY = ViewSimilarity(margins=(0.0, 0.02, 0.05), lift=0.3, max_lift=0.1)


def views_of(corpus: Corpus) -> NDArray[np.float32]:
    """`(owners, views, dim)` unit rows: the image and some of a stranger, less of it from view to view."""
    strangers = corpus.embeddings[(OWNERS * 31 + 300) % 600]
    shares = np.array([0.5, 0.8, 1.1])[:, None]
    return np.stack([unit(corpus.embeddings[o] + shares * s) for o, s in zip(OWNERS, strangers, strict=True)])


def assert_same_found(found: Found, expected: Found) -> None:
    """Two answers are equal in every array."""
    for field in fields(Found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


def write_generation(
    folder: Path,
    corpus: Corpus,
    *,
    num_probes: int = 64,
    batch_size: int = 100,
    num_tables: int = 16,
    with_views: bool = False,
) -> Path:
    """The corpus as a generation, with the views of `OWNERS` where asked."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = GenerationSpec(
        num_docs=len(corpus.embeddings),
        term_params=params_for(len(corpus.embeddings), dim=corpus.embeddings.shape[1], num_tables=num_tables),
        num_probes=num_probes,
        embedder_digest="0" * 64,
        min_score=0.8,
        owners=OWNERS if with_views else np.empty(0, np.int64),
        view_similarity=VIEW_SIMILARITY if with_views else None,
    )
    writer = GenerationWriter(folder, spec)
    for start in range(0, corpus.embedded.size, batch_size):
        docs = corpus.embedded[start : start + batch_size]
        writer.add_embeddings(docs, corpus.embeddings[docs])
    for view, rows in enumerate(views_of(corpus).swapaxes(0, 1) if with_views else ()):
        writer.add_embeddings(spec.view_rows(OWNERS, np.full(OWNERS.size, view)), rows)
    writer.share_codes(corpus.copies, corpus.originals)
    writer.write_image_ids(corpus.image_ids)
    writer.write_clusters(corpus.members, corpus.canonicals)
    writer.finish()
    return folder


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return make_corpus()


@pytest.fixture(scope="session")
def generation_at(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generation of the corpus; tests that damage it work on a copy."""
    return write_generation(tmp_path_factory.mktemp("generation"), corpus)
