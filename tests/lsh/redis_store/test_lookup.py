"""Rules of lookups in Redis: what the memory-mapped generation answers, they answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lsh.index.generation import Generation, open_generation
from lsh.index.layout import params_for
from lsh.index.lookup import HashTables
from lsh.index.writing import GenerationSpec, GenerationWriter
from lsh.redis_store import keys
from lsh.redis_store.publishing import RedisStore
from lsh.redis_store.url import StoreUrl
from tests.lsh.index.conftest import Corpus, assert_same_found, unit, views_of, write_generation


def queries_near(corpus: Corpus, num: int, *, seed: int = 5) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    rows = corpus.embeddings[rng.integers(len(corpus.embeddings), size=num)]
    return unit(rows + 0.05 * rng.standard_normal(rows.shape))


@pytest.mark.parametrize(("num_partitions", "kept_mib"), [(1, 0), (5, 0), (5, 1)])
def test_answers_are_those_of_the_mapped_tables(
    store: RedisStore, generation: Generation, corpus: Corpus, *, num_partitions: int, kept_mib: int
) -> None:
    """One by one and many at once, with docs left out, at every threshold, in one partition or several."""
    store.export(generation, num_partitions=num_partitions)
    opened = RedisStore(StoreUrl(str(store.url) + f"&kept_mib={kept_mib}"))
    ours, mapped = opened.open(generation.manifest.generation_id), HashTables(generation)
    queries = queries_near(corpus, 40)
    excluded = np.random.default_rng(1).random(generation.manifest.num_docs) < 0.3

    for min_similarity in (-1.0, 0.5, 0.9):
        expected = mapped.lookup(queries, k=7, min_similarity=min_similarity)
        assert (expected.docs[:, 0] >= 0).any()
        assert_same_found(ours.lookup(queries, k=7, min_similarity=min_similarity), expected)
        assert_same_found(
            ours.lookup(queries[:1], k=3, min_similarity=min_similarity),
            mapped.lookup(queries[:1], k=3, min_similarity=min_similarity),
        )
        assert_same_found(
            ours.lookup(queries, k=7, min_similarity=min_similarity, excluded=excluded),
            mapped.lookup(queries, k=7, min_similarity=min_similarity, excluded=excluded),
        )
    assert_same_found(
        ours.lookup(queries[:3], k=5, min_similarity=0.5),
        mapped.brute_force_lookup(queries[:3], k=5, min_similarity=0.5),
    )
    opened.close()


@pytest.mark.parametrize("kept_mib", [0, 1])
def test_views_are_found_as_in_the_mapped_tables(
    store: RedisStore, corpus: Corpus, tmp_path: Path, *, kept_mib: int
) -> None:
    """Exported with its views, and verified, a generation answers as its files do."""
    generation = open_generation(write_generation(tmp_path / "views", corpus, num_tables=4, with_views=True))
    store.export(generation, num_partitions=3)
    store.verify(generation.manifest.generation_id)
    opened = RedisStore(StoreUrl(str(store.url) + f"&kept_mib={kept_mib}"))
    ours, mapped = opened.open(generation.manifest.generation_id), HashTables(generation)
    queries = views_of(corpus)[:, 1]
    excluded = np.random.default_rng(1).random(generation.manifest.num_docs) < 0.3

    for hidden in (None, excluded):
        expected = mapped.lookup(queries, k=7, min_similarity=0.5, excluded=hidden)
        assert expected.are_by_view.any()
        assert_same_found(ours.lookup(queries, k=7, min_similarity=0.5, excluded=hidden), expected)
        assert_same_found(
            ours.lookup(queries, k=7, min_similarity=0.5, excluded=hidden, whole_only=True),
            mapped.lookup(queries, k=7, min_similarity=0.5, excluded=hidden, whole_only=True),
        )
    opened.close()


def test_crowded_buckets_are_read_in_chunks(store: RedisStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket that most images share has the same answers, and no more of it is read than a lookup looks at."""
    num_docs, dim = 40_000, 16
    rng = np.random.default_rng(2)
    crowd = unit(rng.standard_normal((1, dim)) + 0.02 * rng.standard_normal((num_docs, dim)))
    spec = GenerationSpec(
        num_docs=num_docs,
        term_params=params_for(num_docs, dim=dim, num_tables=2),
        num_probes=4,
        embedder_digest="0" * 64,
        min_score=0.8,
    )
    writer = GenerationWriter(tmp_path, spec)
    writer.add_embeddings(np.arange(num_docs), crowd)
    writer.write_image_ids(f"{doc:05d}" for doc in range(num_docs))
    writer.write_clusters(np.empty(0, np.int64), np.empty(0, np.int64))
    writer.finish()
    generation = open_generation(tmp_path)
    store.export(generation)
    ours, mapped = store.open(generation.manifest.generation_id), HashTables(generation)

    assert ours.generation.pages.stored.num_chunks > 2
    for rows in (crowd[:1], crowd[5:9], unit(rng.standard_normal((4, dim)))):
        assert_same_found(ours.lookup(rows, k=10, min_similarity=0.5), mapped.lookup(rows, k=10, min_similarity=0.5))


def test_catalogue_and_clusters_are_those_of_the_files(
    store: RedisStore, generation: Generation, corpus: Corpus
) -> None:
    """Names, docs, canonicals, codes, cluster pages."""
    store.export(generation)
    ours = store.open(generation.manifest.generation_id).generation
    docs = np.random.default_rng(3).permutation(generation.manifest.num_docs)

    assert ours.image_ids(docs) == generation.image_ids(docs)
    np.testing.assert_array_equal(ours.canonicals(docs), generation.canonicals(docs))
    np.testing.assert_array_equal(ours.codes(docs[:50]), generation.codes(docs[:50]))
    wanted = [*corpus.image_ids[::3], "nowhere", "ü"]
    np.testing.assert_array_equal(ours.docs_of(wanted), generation.docs_of(wanted))
    assert ours.doc_of("nowhere") is None
    np.testing.assert_array_equal(ours.coarse_centroids, generation.coarse_centroids)
    for doc in range(0, generation.manifest.num_docs, 5):
        assert ours.cluster_size(doc) == generation.cluster_size(doc)
        np.testing.assert_array_equal(ours.members(doc, offset=1, limit=4), generation.members(doc, offset=1, limit=4))
    assert ours.docs_of([]).size == 0
    assert keys.num_name_pages(generation.manifest.num_docs) > 1
