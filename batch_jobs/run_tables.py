"""Rows of a run's tables by image id or doc, for people who ask about a few images of many.

Every question is a filter that Parquet's statistics answer mostly without reading; nothing whole is held in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
from numpy.typing import NDArray

from batch_jobs.errors import SourceError, WorkspaceError
from batch_jobs.make_terms import binary_values, embedding_rows, read_leaders, read_lists
from batch_jobs.nights import Known, Night, known_of, live_images, read_night
from batch_jobs.run_records import NIGHTLY, RunRecord
from batch_jobs.schemas import CATALOGUE, columns
from batch_jobs.workspace import read_json
from embed.pair_scoring import PairScorer, read_pair_scorer
from lsh.blocks import TermPostings, partition_of
from lsh.buckets import Buckets
from lsh.candidates import CandidateParams
from lsh.errors import ParameterError
from lsh.leaders import NO_LEADERS, Leaders
from lsh.terms import TermParams

Row = dict[str, Any]


@dataclass(frozen=True)
class RunTables:
    """The tables of one run, of a night with all that it builds on.

    Every method raises WorkspaceError when the table it needs is gone.
    """

    workspace: Path
    record: RunRecord

    @cached_property
    def night(self) -> Night | None:
        """The night that the run is, None where it is none; raises WorkspaceError for one that is not finished."""
        return night_of(self.workspace, self.record)

    @cached_property
    def whole(self) -> Known:
        """The tables that hold everything after the run."""
        return whole_of(self.workspace, self.record)

    def image(self, image_id: str) -> Row | None:
        """The catalogue's row of an image; None when it is not catalogued."""
        return self.images_named([image_id]).get(image_id)

    def images_named(self, image_ids: Iterable[str]) -> dict[str, Row]:
        """The catalogue's rows of some images, by id."""
        return {row["image_id"]: row for row in self._images(_isin("image_id", image_ids))}

    def required_image(self, image_id: str) -> Row:
        """As `image`; raises SourceError for an image that the run does not have."""
        row = self.image(image_id)
        if row is None:
            raise SourceError(f"run {self.record.run_id} has no image {image_id}; ids are those of its catalogue")
        return row

    def images(self, docs: Iterable[int]) -> dict[int, Row]:
        """The catalogue's rows of some originals, by doc; of an original that is gone its first copy's."""
        found: dict[int, Row] = {}
        for row in self._images(_isin("original_doc", docs)):
            found.setdefault(row["original_doc"], row)
        return found

    def copies(self, original_doc: int) -> list[str]:
        """The ids of all images with the bytes of a doc, the oldest first."""
        return [row["image_id"] for row in self._images(_field("original_doc") == original_doc)]

    def reject(self, image_id: str) -> Row | None:
        """Why an image was rejected, None if it was not."""
        own = [step for step in ("catalogue", "embed") if self.record.step(step) is not None]
        tables = [str(self.record.table(self.workspace, step, "rejects")) for step in own]
        if self.night is not None:
            tables.extend(reversed(self.night.tables(self.workspace, "embed", "rejects")))
        found = (row for table in tables for row in _rows((table,), _field("image_id") == image_id))
        return next(found, None)

    def embedding(self, doc: int) -> NDArray[np.float32] | None:
        """The embedding `(1, dim)` of an original; None when it has none."""
        table = _table(self.whole.embeddings, _field("doc") == doc)
        return embedding_rows(table["embedding"].combine_chunks(), dim=self.term_params.dim) if len(table) else None

    def codes(self, docs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
        """The docs of `docs` that have a code, ascending, and their `(n, dim)` int8 codes."""
        table = _table(self.whole.codes, _isin("doc", docs.tolist())).sort_by("doc")
        rows = np.frombuffer(binary_values(table["code"].combine_chunks()), np.int8)
        return table["doc"].to_numpy(), rows.reshape(-1, self.term_params.dim)

    def edges(self, docs: Iterable[int]) -> list[Row]:
        """The matches of some originals with others that are there, best score first.

        Those that clustering found in crowds have neither `similarity` nor `shared_terms`.
        """
        listed = list(docs)
        wanted = _isin("left_doc", listed) | _isin("right_doc", listed)
        rows = _rows(self.whole.edges, wanted)
        in_crowds = _rows(self.whole.crowd_edges, wanted)
        rows.extend({**row, "similarity": None, "shared_terms": None} for row in in_crowds)
        live = self.images({row[end] for row in rows for end in ("left_doc", "right_doc")}).keys()
        rows = [row for row in rows if {row["left_doc"], row["right_doc"]} <= live]
        return sorted(rows, key=lambda row: (-row["score"], row["left_doc"], row["right_doc"]))

    def membership(self, image_ids: Iterable[str]) -> dict[str, Row]:
        """The rows of `clusters` of some images, by id; those that are in no cluster are left out."""
        images = self.images_named(image_ids)
        placed = self._assigned({row["doc"] for row in images.values()})
        rows = self._clusters({canonical_doc for canonical_doc, _ in placed.values()})
        return {row["image_id"]: row for row in rows if row["image_id"] in images}

    def cluster(self, canonical_id: str) -> list[Row]:
        """The members of a cluster, its canonical first, then best score first."""
        rows = self._clusters({row["doc"] for row in self.images_named([canonical_id]).values()})
        return sorted(rows, key=lambda row: (not row["is_canonical"], -row["score"], row["image_id"]))

    @property
    def is_updated(self) -> bool:
        """Whether the clusters are those of a night before, updated, and not cut from scratch."""
        return self.night is not None and self.night.previous is not None and not self.record.options["is_full"]

    @property
    def term_params(self) -> TermParams:
        return TermParams.from_json(self.night.settings["terms"] if self.night else self._inputs("terms")["terms"])

    @property
    def candidate_params(self) -> CandidateParams:
        decided = self.night.settings if self.night else self._inputs("candidates")
        return CandidateParams(**decided["candidates"])

    @property
    def leaders(self) -> Leaders:
        """What led the crowds of the first images; the nights after them have no leaders."""
        table = Path(self.whole.posting_lists[0]).parent / "leaders"
        return read_leaders(str(table)) if table.is_dir() else NO_LEADERS

    @property
    def selection(self) -> Mapping[str, Any]:
        """What decided the matches: `min_score`, `min_shared_terms`, `verified`."""
        return self.night.settings if self.night else self._inputs("select")

    @property
    def scorer(self) -> PairScorer:
        """What scored the pairs of the run."""
        folder = Path(self.whole.edges[-1]).parent
        return read_pair_scorer(folder, embedder_digest=self.record.embedder_digest)

    def buckets(self, terms: NDArray[np.uint64]) -> Buckets:
        """The buckets of some terms, of images that are there."""
        wanted = np.unique(terms)
        parts = partition_of(wanted, self.whole.num_parts or 1)
        found = [
            _named(read_lists(table, part).buckets_of(wanted[parts == part]).postings())
            for table in self.whole.posting_lists
            for part in np.unique(parts).tolist()
        ]
        merged = _merged([one for one in found if one.terms.size])
        live = self.images(merged.docs.tolist()).keys()
        is_live = np.array([doc in live for doc in merged.docs.tolist()])[merged.doc_rows]
        return Buckets.of(_named(replace(merged, terms=merged.terms[is_live], doc_rows=merged.doc_rows[is_live])))

    def _inputs(self, step: str) -> Row:
        record = self.record.step(step)
        if record is None:
            raise WorkspaceError(f"run {self.record.run_id} was stopped before the step {step}")
        commit = read_json(self.workspace / "steps" / record.folder_name / "commit.json")
        inputs: Row = commit["inputs"]
        return inputs

    def _clusters(self, canonical_docs: set[int]) -> list[Row]:
        """The rows of the clusters of two or more that some images lead."""
        followers = {row["doc"] for row in _rows(self.clustered.assignments, _isin("canonical_doc", canonical_docs))}
        placed = self._assigned(followers | canonical_docs)
        live = {row["doc"]: row["image_id"] for row in self._images(_isin("doc", placed))}
        members = [(doc, *place) for doc, place in placed.items() if doc in live and place[0] in canonical_docs]
        sizes = Counter(canonical_doc for _, canonical_doc, _ in members)
        return [
            {
                "image_id": live[doc],
                "canonical_id": live[canonical_doc],
                "score": score,
                "is_canonical": doc == canonical_doc,
                "size": sizes[canonical_doc],
            }
            for doc, canonical_doc, score in members
            if sizes[canonical_doc] > 1
        ]

    def _assigned(self, docs: set[int]) -> dict[int, tuple[int, float]]:
        """The doc of the canonical of each image, and its score with it."""
        rows = _rows(self.clustered.assignments, _isin("doc", docs))
        return {doc: (doc, 1.0) for doc in docs} | {row["doc"]: (row["canonical_doc"], row["score"]) for row in rows}

    @property
    def clustered(self) -> Known:
        """The whole of a run that has clusters; raises WorkspaceError for one that was stopped before."""
        if not self.whole.assignments:
            self.record.table(self.workspace, "cluster", "assignments")
        return self.whole

    def _images(self, wanted: pyarrow.dataset.Expression) -> list[Row]:
        """Rows of the catalogue of images that are there, by doc."""
        rows: list[Row] = live_images(self.whole, columns(CATALOGUE), where=wanted).to_pylist()
        return rows


def night_of(workspace: Path, record: RunRecord) -> Night | None:
    """The night that a run is, None where it is none; raises WorkspaceError for one that is not finished."""
    if record.command != NIGHTLY:
        return None
    if not record.is_finished:
        raise WorkspaceError(
            f"run {record.run_id} is a night that was stopped; `neardup runs resume {record.run_id}` finishes it"
        )
    return read_night(workspace, record.results["night_id"])


def whole_of(workspace: Path, record: RunRecord) -> Known:
    """The tables that hold everything after a run; raises WorkspaceError where one is gone or was never made."""
    night = night_of(workspace, record)
    if night is not None:
        return known_of(workspace, night)

    def table(step: str, name: str) -> tuple[str, ...]:
        return (str(record.table(workspace, step, name)),)

    return Known(
        num_parts=record.stat("terms", "num_parts"),
        catalogues=table("catalogue", "catalogue"),
        embeddings=table("embed", "embeddings"),
        posting_lists=table("terms", "posting_lists"),
        codes=table("terms", "codes"),
        edges=(*table("select", "edges"), *(table("compare", "view_edges") if record.step("compare") else ())),
        assignments=table("cluster", "assignments") if record.step("cluster") else (),
        crowd_edges=table("cluster", "crowd_edges") if record.step("cluster") else (),
    )


def _table(tables: tuple[str, ...], wanted: pyarrow.dataset.Expression) -> pa.Table:
    return pa.concat_tables(pyarrow.dataset.dataset(one, format="parquet").to_table(filter=wanted) for one in tables)


def _rows(tables: tuple[str, ...], wanted: pyarrow.dataset.Expression) -> list[Row]:
    rows: list[Row] = _table(tables, wanted).to_pylist()
    return rows


def _field(name: str) -> pyarrow.dataset.Expression:
    return pyarrow.dataset.field(name)


def _isin(name: str, values: Iterable[Any]) -> pyarrow.dataset.Expression:
    return _field(name).isin(pa.array(list(values), pa.string() if name.endswith("_id") else pa.int64()))


def _named(postings: TermPostings) -> TermPostings:
    """The postings without docs that they do not name."""
    rows, doc_rows = np.unique(postings.doc_rows, return_inverse=True)
    return TermPostings(postings.terms, doc_rows, postings.docs[rows], postings.sketches[rows])


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
