"""Rules of generations: what they answer, and that no damaged, truncated, missing or foreign file passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from lsh.codes import quantize
from lsh.errors import GenerationError, ParameterError
from lsh.index import layout
from lsh.index.generation import Generation, open_generation, verify_generation
from lsh.index.lookup import HashTables
from lsh.index.manifest import MANIFEST_NAME, Manifest
from lsh.sketches import long_sketches
from lsh.terms import TermHasher
from tests.lsh.index.conftest import Corpus, make_corpus, write_generation

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def generation(generation_at: Path) -> Generation:
    return open_generation(generation_at)


@pytest.fixture
def copy_at(generation_at: Path, tmp_path: Path) -> Path:
    """A copy of the generation that a test may damage."""
    return Path(shutil.copytree(generation_at, tmp_path / "copy"))


def test_every_posting_list_holds_the_docs_of_its_bucket(generation: Generation, corpus: Corpus) -> None:
    """All lists together are the terms of the embedded originals, each doc once a table, ascending."""
    params = generation.manifest.term_params
    terms = TermHasher(params).terms(corpus.embeddings[corpus.embedded])
    expected = {int(term): corpus.embedded[np.nonzero(terms == term)[0]].tolist() for term in np.unique(terms).tolist()}
    tables = HashTables(generation)
    found = {
        term: docs
        for term in range(params.num_tables << params.bits_per_term)
        if (docs := tables.posting_list(term).tolist())
    }

    assert found == expected
    assert generation.manifest.num_postings == sum(map(len, expected.values()))


def test_codes_and_sketches_are_those_of_the_embeddings(generation: Generation, corpus: Corpus) -> None:
    """An original has its own code, a copy its original's, a rejected image zeros."""
    expected = quantize(corpus.embeddings)
    expected[corpus.copies] = expected[corpus.originals]
    expected[corpus.rejected] = 0
    docs = np.arange(len(expected))

    np.testing.assert_array_equal(generation.codes(docs), expected)
    sketches = long_sketches(corpus.embeddings, num_words=layout.WORDS_PER_SKETCH)
    np.testing.assert_array_equal(generation.sketches[corpus.embedded], sketches[corpus.embedded])


def test_image_ids_and_docs_are_each_others_inverse(generation: Generation, corpus: Corpus) -> None:
    """Every doc has its image id and every image id its doc, in any order of ids and with any characters."""
    assert generation.image_ids(np.arange(len(corpus.image_ids))) == corpus.image_ids
    assert [generation.doc_of(image_id) for image_id in corpus.image_ids] == list(range(len(corpus.image_ids)))


@pytest.mark.parametrize("image_id", ["", "photos/", "zzz", "photos/9999.jpg", "\x00", "ü/0001.jp"])
def test_an_unknown_image_id_has_no_doc(generation: Generation, image_id: str) -> None:
    """None, whether it would stand before, between or after the known ones."""
    assert generation.doc_of(image_id) is None


def test_clusters_give_canonicals_and_pages(generation: Generation, corpus: Corpus) -> None:
    """Each member knows its canonical; pages of any size put together are the cluster, canonical first."""
    expected = np.arange(len(corpus.embeddings))
    expected[corpus.members] = corpus.canonicals
    np.testing.assert_array_equal(generation.canonicals(np.arange(len(expected))), expected)
    for canonical in np.unique(corpus.canonicals).tolist():
        members = corpus.members[corpus.canonicals == canonical].tolist()
        assert generation.cluster_size(canonical) == len(members)
        for limit in (1, 3, 100):
            pages = [
                generation.members(canonical, offset=offset, limit=limit).tolist()
                for offset in range(0, len(members) + limit, limit)
            ]
            assert [doc for page in pages for doc in page] == members


def test_an_image_that_stands_alone_is_a_cluster_of_one(generation: Generation) -> None:
    """Its only page holds itself, the next one nothing."""
    alone = generation.manifest.num_docs - 1
    assert generation.cluster_size(alone) == 1
    assert generation.members(alone, offset=0, limit=10).tolist() == [alone]
    assert generation.members(alone, offset=1, limit=10).tolist() == []


def test_docs_outside_are_named(generation: Generation) -> None:
    """A doc that does not exist raises ParameterError with the range."""
    for docs in (np.array([-1]), np.array([0, 600])):
        with pytest.raises(ParameterError, match=r"out of range 0\.\.599"):
            generation.canonicals(docs)
    with pytest.raises(ParameterError, match="offset=-1"):
        generation.members(0, offset=-1, limit=1)


def test_centroids_are_unit_rows_near_the_corpus(generation: Generation, corpus: Corpus) -> None:
    """One centroid for every 39 docs; an image is nearer to its centroid than to the others on average."""
    centroids = generation.coarse_centroids
    cosines = corpus.embeddings @ centroids.T

    assert centroids.shape == (corpus.embedded.size // 39, 48)
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-5)
    assert cosines.max(axis=1).mean() > cosines.mean() + 0.3


@pytest.mark.parametrize("batch_size", [1, 37, 600])
def test_batches_do_not_change_the_bytes(generation_at: Path, corpus: Corpus, tmp_path: Path, batch_size: int) -> None:
    """Every file is the same whatever the batches were, and so is the generation's id."""
    again = write_generation(tmp_path, corpus, batch_size=batch_size)

    for name in layout.DTYPES:
        assert (again / name).read_bytes() == (generation_at / name).read_bytes(), name
    assert open_generation(again).manifest.generation_id == open_generation(generation_at).manifest.generation_id


def test_a_whole_generation_is_verified(generation_at: Path) -> None:
    """Nothing is said of a generation without a fault."""
    verify_generation(generation_at)


@pytest.mark.parametrize("name", [*layout.DTYPES, MANIFEST_NAME])
def test_a_missing_file_is_named(copy_at: Path, name: str) -> None:
    """Opening and verifying refuse a generation without one of its files and say which."""
    (copy_at / name).unlink()
    for check in (open_generation, verify_generation):
        with pytest.raises(GenerationError, match=name):
            check(copy_at)


@pytest.mark.parametrize("name", [*layout.DTYPES, MANIFEST_NAME])
def test_a_truncated_file_is_named(copy_at: Path, name: str) -> None:
    """A file that lost its last byte is refused at opening already."""
    path = copy_at / name
    path.write_bytes(path.read_bytes()[:-2])
    for check in (open_generation, verify_generation):
        with pytest.raises(GenerationError, match=name):
            check(copy_at)


@pytest.mark.parametrize("name", [*layout.DTYPES, MANIFEST_NAME])
def test_a_flipped_bit_is_named(copy_at: Path, name: str) -> None:
    """Verifying finds one wrong bit in the middle of any file."""
    path = copy_at / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(GenerationError, match=name):
        verify_generation(copy_at)


@pytest.mark.parametrize("name", list(layout.DTYPES))
def test_a_file_of_another_generation_is_named(copy_at: Path, tmp_path: Path, name: str) -> None:
    """A file that is whole but belongs to another corpus is refused, by its size or by its digest."""
    other = write_generation(tmp_path / "other", make_corpus(700, seed=1))
    shutil.copyfile(other / name, copy_at / name)
    with pytest.raises(GenerationError, match=name):
        verify_generation(copy_at)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(format_version=2), "format version 2, this program reads version 3"),
        (lambda value: value.update(min_score=0.5), "it was altered"),
        (lambda value: value.update(embedder_digest="other"), "it was altered"),
        (lambda value: value.update(extra=1), "has fields"),
        (lambda value: value.pop("num_docs"), "has fields"),
        (lambda value: value["term_params"].update(num_tables=0), "num_tables=0 is out of range"),
        (lambda value: value["files"].pop(layout.CODES), "it was altered"),
        (lambda value: value.update(files=[]), "is damaged"),
        (lambda value: value.clear(), "is no manifest"),
    ],
)
def test_an_altered_manifest_is_refused(
    copy_at: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    """Another version, unknown or missing fields and edited values are refused, with what is wrong."""
    path = copy_at / MANIFEST_NAME
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(GenerationError, match=message):
        open_generation(copy_at)


def test_the_manifest_survives_its_text(generation: Generation) -> None:
    """A manifest written and read back is equal, and its id does not depend on when it was made."""
    manifest = generation.manifest
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest
    later = json.loads(manifest.to_bytes())
    later["created_at"] = "2030-01-01T00:00:00+00:00"
    assert Manifest.from_bytes(json.dumps(later).encode()).generation_id == manifest.generation_id
