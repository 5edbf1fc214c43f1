"""A small corpus in families, and generations made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.index.layout import params_for
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


def write_generation(
    folder: Path, corpus: Corpus, *, num_probes: int = 64, batch_size: int = 100, num_tables: int = 16
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    spec = GenerationSpec(
        num_docs=len(corpus.embeddings),
        term_params=params_for(len(corpus.embeddings), dim=corpus.embeddings.shape[1], num_tables=num_tables),
        num_probes=num_probes,
        embedder_digest="0" * 64,
        min_score=0.8,
    )
    writer = GenerationWriter(folder, spec)
    for start in range(0, corpus.embedded.size, batch_size):
        docs = corpus.embedded[start : start + batch_size]
        writer.add_embeddings(docs, corpus.embeddings[docs])
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
