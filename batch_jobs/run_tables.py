"""Rows of a run's tables by image id or doc, for people who ask about a few images of many.

Every question is a filter that Parquet's statistics answer mostly without reading; nothing whole is held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs.errors import SourceError, WorkspaceError
from batch_jobs.make_terms import binary_values, embedding_rows
from batch_jobs.run_records import RunRecord
from batch_jobs.workspace import read_json
from embed.pair_scoring import PairScorer, read_pair_scorer
from lsh.blocks import TermPostings, decode_term_blocks, partition_of
from lsh.candidates import CandidateParams
from lsh.errors import ParameterError
from lsh.terms import TermParams

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunTables:
    """The tables of one run; every method raises WorkspaceError when the table it needs is gone."""

    workspace: Path
    record: RunRecord

    def image(self, image_id: str) -> Row | None:
        """The catalogue's row of an image; None when it is not catalogued."""
        return self.images_named([image_id]).get(image_id)

    def images_named(self, image_ids: Iterable[str]) -> dict[str, Row]:
        """The catalogue's rows of some images, by id."""
        rows = self._rows("catalogue", "catalogue", _isin("image_id", image_ids))
        return {row["image_id"]: row for row in rows}

    def required_image(self, image_id: str) -> Row:
        """As `image`; raises SourceError for an image that the run does not have."""
        row = self.image(image_id)
        if row is None:
            raise SourceError(f"run {self.record.run_id} has no image {image_id}; ids are those of its catalogue")
        return row

    def images(self, docs: Iterable[int]) -> dict[int, Row]:
        """The catalogue's rows of some docs, by doc."""
        rows = self._rows("catalogue", "catalogue", _isin("doc", docs))
        return {row["doc"]: row for row in rows}

    def copies(self, original_doc: int) -> list[str]:
        """The ids of all images with the bytes of a doc, its own first."""
        rows = self._rows("catalogue", "catalogue", _field("original_doc") == original_doc)
        return [row["image_id"] for row in sorted(rows, key=lambda row: int(row["doc"]))]

    def reject(self, image_id: str) -> Row | None:
        """Why an image was rejected, None if it was not."""
        for step in ("catalogue", "embed"):
            if self.record.step(step) is not None:
                found = self._rows(step, "rejects", _field("image_id") == image_id)
                if found:
                    return found[0]
        return None

    def embedding(self, doc: int) -> NDArray[np.float32] | None:
        """The embedding `(1, dim)` of an original; None when it has none."""
        table = self._dataset("embed", "embeddings").to_table(filter=_field("doc") == doc)
        return embedding_rows(table["embedding"].combine_chunks(), dim=self.term_params.dim) if len(table) else None

    def codes(self, docs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """The docs of `docs` that have a code, ascending, and their `(n, dim)` int8 codes."""
        table = self._dataset("terms", "codes").to_table(filter=_isin("doc", docs.tolist())).sort_by("doc")
        rows = np.frombuffer(binary_values(table["code"].combine_chunks()), np.int8)
        return table["doc"].to_numpy(), rows.reshape(-1, self.term_params.dim)

    def edges(self, docs: Iterable[int]) -> list[Row]:
        """The matches of some originals, best score first."""
        listed = list(docs)
        rows = self._rows("select", "edges", _isin("left_doc", listed) | _isin("right_doc", listed))
        return sorted(rows, key=lambda row: (-row["score"], row["left_doc"], row["right_doc"]))

    def membership(self, image_ids: Iterable[str]) -> dict[str, Row]:
        """The rows of `clusters` of some images, by id; those that are in no cluster are left out."""
        rows = self._rows("cluster", "clusters", _isin("image_id", image_ids))
        return {row["image_id"]: row for row in rows}

    def cluster(self, canonical_id: str) -> list[Row]:
        """The members of a cluster, its canonical first, then best score first."""
        rows = self._rows("cluster", "clusters", _field("canonical_id") == canonical_id)
        return sorted(rows, key=lambda row: (not row["is_canonical"], -row["score"], row["image_id"]))

    @property
    def term_params(self) -> TermParams:
        return TermParams.from_json(self._inputs("terms")["terms"])

    @property
    def candidate_params(self) -> CandidateParams:
        return CandidateParams(**self._inputs("candidates")["candidates"])

    @property
    def selection(self) -> Row:
        """What decided the matches: `min_score`, `min_shared_terms`, `verified`."""
        return self._inputs("select")

    @property
    def scorer(self) -> PairScorer:
        """What scored the pairs of the run."""
        folder = self.record.table(self.workspace, "select", "edges").parent
        return read_pair_scorer(folder, embedder_digest=self.record.embedder_digest)

    def buckets(self, terms: NDArray[np.uint64]) -> TermPostings:
        """The postings of the buckets of some terms, from the blocks of the shuffle, one block at a time."""
        blocks = self._dataset("terms", "term_blocks")
        num_parts = 1 + max((int(batch["part"].to_numpy().max()) for batch in _batches(blocks, ["part"])), default=0)
        parts = np.unique(partition_of(terms, num_parts)).tolist()
        found = [
            _of_terms(decode_term_blocks([block]), terms)
            for batch in _batches(blocks, ["block"], _isin("part", parts))
            for block in batch["block"].to_pylist()
        ]
        return _merged([one for one in found if one.terms.size])

    def _inputs(self, step: str) -> Row:
        record = self.record.step(step)
        if record is None:
            raise WorkspaceError(f"run {self.record.run_id} was stopped before the step {step}")
        commit = read_json(self.workspace / "steps" / record.folder_name / "commit.json")
        inputs: Row = commit["inputs"]
        return inputs

    def _dataset(self, step: str, table: str) -> pyarrow.dataset.Dataset:
        return pyarrow.dataset.dataset(self.record.table(self.workspace, step, table), format="parquet")

    def _rows(self, step: str, table: str, wanted: pyarrow.dataset.Expression) -> list[Row]:
        rows: list[Row] = self._dataset(step, table).to_table(filter=wanted).to_pylist()
        return rows


def _field(name: str) -> pyarrow.dataset.Expression:
    return pyarrow.dataset.field(name)


def _isin(name: str, values: Iterable[Any]) -> pyarrow.dataset.Expression:
    return _field(name).isin(pa.array(list(values), pa.string() if name.endswith("_id") else pa.int64()))


def _batches(
    table: pyarrow.dataset.Dataset, columns: list[str], wanted: pyarrow.dataset.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    batches = table.to_batches(columns=columns, filter=wanted, batch_size=16)
    return (batch for batch in batches if batch.num_rows)


def _of_terms(postings: TermPostings, terms: NDArray[np.uint64]) -> TermPostings:
    """The postings of some terms, with the docs they name."""
    is_wanted = np.isin(postings.terms, terms)
    rows, doc_rows = np.unique(postings.doc_rows[is_wanted], return_inverse=True)
    return TermPostings(postings.terms[is_wanted], doc_rows, postings.docs[rows], postings.sketches[rows])


def _merged(parts: list[TermPostings]) -> TermPostings:
    """Postings with the docs of all parts, each once; raises ParameterError without any."""
    if not parts:
        raise ParameterError("none of these terms has a bucket; the terms are those of another run")
    docs, first, merged = np.unique(
        np.concatenate([part.docs for part in parts]), return_index=True, return_inverse=True
    )
    starts = np.cumsum([0, *(part.docs.size for part in parts[:-1])])
    doc_rows = merged[np.concatenate([part.doc_rows + start for part, start in zip(parts, starts, strict=True)])]
    terms = np.concatenate([part.terms for part in parts])
    order = np.lexsort((doc_rows, terms))
    return TermPostings(terms[order], doc_rows[order], docs, np.concatenate([part.sketches for part in parts])[first])
