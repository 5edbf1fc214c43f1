"""Rules of writing a generation: what is refused, and that ranges of buckets do not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsh.errors import ParameterError
from lsh.index import layout, writing
from lsh.index.layout import Parts, params_for, probes_for
from lsh.index.writing import GenerationSpec, GenerationWriter
from lsh.probes import probe_plan
from lsh.terms import TermParams
from tests.lsh.index.conftest import Corpus, write_generation


def writer_in(folder: Path, num_docs: int = 3) -> GenerationWriter:
    spec = GenerationSpec(
        num_docs=num_docs, term_params=params_for(num_docs, dim=8), num_probes=32, embedder_digest="x", min_score=0.8
    )
    return GenerationWriter(folder, spec)


def test_ranges_of_buckets_do_not_change_the_bytes(
    generation_at: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few postings are held in memory at once, the files are the same."""
    monkeypatch.setattr(writing, "POSTINGS_AT_ONCE", 100)
    monkeypatch.setattr(layout, "MAX_BITS_PER_PART", 16)
    again = write_generation(tmp_path, corpus)

    for name in (layout.POSTINGS, layout.POSTING_OFFSETS, layout.PART_STARTS):
        assert (again / name).read_bytes() == (generation_at / name).read_bytes()


@pytest.mark.parametrize("image_ids", [["a"], ["a", "b", "c", "d"]])
def test_image_ids_are_as_many_as_docs(tmp_path: Path, image_ids: list[str]) -> None:
    """Fewer or more ids than docs raise ParameterError."""
    with pytest.raises(ParameterError, match=r"image ids .*num_docs=3"):
        writer_in(tmp_path).write_image_ids(image_ids)


def test_an_image_id_given_twice_is_named(tmp_path: Path) -> None:
    """Ids are unique."""
    with pytest.raises(ParameterError, match="'b' is given twice"):
        writer_in(tmp_path).write_image_ids(["b", "a", "b"])


def test_a_cluster_without_its_canonical_is_refused(tmp_path: Path) -> None:
    """The canonical is a member of its own cluster."""
    with pytest.raises(ParameterError, match="lacks its canonical"):
        writer_in(tmp_path).write_clusters(np.array([1, 2]), np.array([0, 0]))


def test_a_generation_is_not_finished_without_ids_and_clusters(tmp_path: Path) -> None:
    """`finish` says what was forgotten."""
    with pytest.raises(ParameterError, match="were not written"):
        writer_in(tmp_path).finish()


def test_docs_outside_are_refused(tmp_path: Path) -> None:
    """An embedding for a doc that does not exist raises ParameterError."""
    with pytest.raises(ParameterError, match=r"out of range 0\.\.2"):
        writer_in(tmp_path).add_embeddings(np.array([3]), np.ones((1, 8), np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_docs": 0}, "num_docs=0 is out of range"),
        ({"num_probes": 1}, "num_probes=1 is out of range 16"),
        ({"term_params": TermParams(num_tables=4, num_polytopes=4)}, "36 bits per term are more than the 32"),
        ({"term_params": TermParams(family="hyperplane")}, "has no probes"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    """Parameters that no index can have raise ParameterError when the spec is made."""
    fields = {
        "num_docs": 5,
        "term_params": params_for(5, dim=8),
        "num_probes": 32,
        "embedder_digest": "x",
        "min_score": 0.8,
    }
    with pytest.raises(ParameterError, match=message):
        GenerationSpec(**{**fields, **changes})  # type: ignore[arg-type]


def test_an_empty_corpus_of_rejects_is_a_generation(tmp_path: Path) -> None:
    """Docs without a single embedding still have ids, clusters and empty lists."""
    writer = writer_in(tmp_path)
    writer.write_image_ids(["a", "b", "c"])
    writer.write_clusters(np.empty(0, np.int64), np.empty(0, np.int64))
    manifest = writer.finish()

    assert manifest.num_hashed == manifest.num_postings == 0
    assert (tmp_path / layout.POSTINGS).stat().st_size == 0


def test_parameters_fit_the_corpus() -> None:
    """Buckets grow with the corpus, from 2 ** 15 a table, and stay about half as many as docs."""
    bits = [params_for(num_docs, dim=256).bits_per_term for num_docs in (1, 1000, 10**5, 10**6, 10**7, 10**9)]

    assert bits == [15, 15, 16, 19, 22, 28]


def test_probes_grow_with_the_corpus() -> None:
    """From a million docs on, where buckets are finer; never fewer than 12 a table, never more than a plan takes."""
    assert [probes_for(num_docs, num_tables=2) for num_docs in (1, 10**6, 10**7)] == [24, 24, 64]
    for num_docs in (1, 10**6, 10**9, layout.MAX_DOCS):
        probe_plan(params_for(num_docs, dim=256), probes_for(num_docs))


def test_parts_cut_tables_into_ranges() -> None:
    """A table of 2 ** 19 buckets has eight parts of 2 ** 16."""
    parts = Parts.of(params_for(10**6, dim=256))

    assert (parts.parts_per_table, parts.buckets_per_part, parts.num_parts) == (8, 1 << 16, 128)
