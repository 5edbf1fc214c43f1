"""The bytes in `docs/index-format.md` are the bytes that a generation holds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from lsh.index import layout
from lsh.index.generation import open_generation
from lsh.index.lookup import HashTables
from lsh.index.view_similarity import ViewSimilarity
from lsh.index.writing import GenerationSpec, GenerationWriter
from lsh.terms import TermParams

FORMAT_TEXT = (Path(__file__).parents[3] / "docs" / "index-format.md").read_text(encoding="utf-8")
WORKED = [name for name in layout.DTYPES if f"```{name}" in FORMAT_TEXT]


def worked_example(name: str) -> bytes:
    block = re.search(rf"```{re.escape(name)}\n(.*?)```", FORMAT_TEXT, re.DOTALL)
    assert block is not None
    return b"".join(bytes.fromhex(line.split("  ")[0]) for line in block[1].splitlines())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worked")
    params = TermParams(num_tables=2, dim=2, num_polytopes=1, polytope_dim=2)
    spec = GenerationSpec(num_docs=3, term_params=params, num_probes=4, embedder_digest="example", min_score=0.79)
    writer = GenerationWriter(folder, spec)
    writer.add_embeddings(np.arange(3), np.array([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0]], dtype=np.float32))
    writer.write_image_ids(["b.jpg", "a.jpg", "ü.jpg"])
    writer.write_clusters(np.array([1, 0]), np.array([1, 1]))
    writer.finish()
    return folder


@pytest.mark.parametrize("name", WORKED)
def test_worked_bytes_are_written(written: Path, name: str) -> None:
    """Each worked file is byte for byte what the writer writes."""
    assert (written / name).read_bytes() == worked_example(name)


def test_every_file_but_the_sketches_is_worked() -> None:
    """Sketches are 256 signs of a rotation, which no hand works out; everything else is shown."""
    assert set(layout.DTYPES) - set(WORKED) == {layout.SKETCHES}


def test_worked_views_are_written_and_found(tmp_path: Path) -> None:
    """The files of views are those of the text, and the view's row stands for its owner."""
    params = TermParams(num_tables=2, dim=2, num_polytopes=1, polytope_dim=2)
    spec = GenerationSpec(
        num_docs=3,
        term_params=params,
        num_probes=4,
        embedder_digest="example",
        min_score=0.79,
        owners=np.array([1]),
        view_similarity=ViewSimilarity((0.5,)),
    )
    writer = GenerationWriter(tmp_path, spec)
    rows = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, -1.0], [0.0, 1.0]], dtype=np.float32)
    writer.add_embeddings(np.arange(4), rows)
    writer.write_image_ids(["b.jpg", "a.jpg", "ü.jpg"])
    writer.write_clusters(np.array([1, 0]), np.array([1, 1]))
    writer.finish()

    for name in layout.VIEW_DTYPES:
        assert (tmp_path / name).read_bytes() == worked_example(name)
    assert spec.view_rows(np.array([1]), np.array([0])).tolist() == [3]
    assert open_generation(tmp_path).views.docs_of(np.arange(4)).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("name", [*layout.DTYPES, *layout.VIEW_DTYPES])
def test_every_file_is_in_the_table(name: str) -> None:
    """The table of arrays names each file and its type."""
    dtype = {**layout.DTYPES, **layout.VIEW_DTYPES}[name].name
    assert f"| `{name}` | {dtype} |" in FORMAT_TEXT


def test_worked_bytes_say_what_the_text_says(written: Path) -> None:
    """The lists, ids and cluster that the text names are read from those bytes."""
    generation = open_generation(written)
    tables = HashTables(generation)

    assert [tables.posting_list(term).tolist() for term in range(8)] == [[2], [0, 1], [], [], [0, 1], [2], [], []]
    assert generation.image_ids(np.arange(3)) == ["b.jpg", "a.jpg", "ü.jpg"]
    assert [generation.doc_of(image_id) for image_id in ("a.jpg", "b.jpg", "ü.jpg")] == [1, 0, 2]
    assert generation.members(1, offset=0, limit=9).tolist() == [1, 0]
    np.testing.assert_allclose(generation.coarse_centroids, [[0.99216, -0.125]], atol=1e-5)
