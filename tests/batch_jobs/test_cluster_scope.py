"""Tests of nights that update clusters: they look at all that can change, and write all that has."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs import schemas
from batch_jobs.assignments import read_clusters
from batch_jobs.cluster_matches import cluster_matches
from batch_jobs.decisions import Decision, DecisionKind, Decisions
from batch_jobs.nights import Known
from batch_jobs.session import write_arrow
from batch_jobs.workspace import write_json

CATALOGUE = ("image_id", "doc", "original_doc", "width", "height", "size_bytes")
SHARE_MATCHING = 0.25


@dataclass
class Nights:
    """A made-up workspace: the tables that cluster steps read, of nights in which images, copies and matches come."""

    folder: Path
    rng: np.random.Generator
    known: Known = field(default_factory=Known)
    content_of: dict[str, tuple[int, int]] = field(default_factory=dict)
    rejected: set[int] = field(default_factory=set)
    num_tables: int = 0

    def table(self, rows: list[dict[str, Any]], schema: str, columns: tuple[str, ...] | None = None) -> str:
        fields = schemas.arrow(schema)
        path = self.folder / f"table-{self.num_tables}"
        self.num_tables += 1
        wanted = pa.schema([fields.field(name) for name in columns or fields.names])
        write_arrow(pa.Table.from_pylist(rows, schema=wanted), path)
        return str(path)

    def change(self, *, num_new: int, num_removed: int) -> Known:
        """All there is after a day: images go, new ones and copies of known ones come, and new contents match some."""
        gone = self.rng.permutation(sorted(self.content_of)).tolist()[:num_removed]
        arriving = sorted({content for _, content in self.content_of.values()})
        removed = [{"doc": self.content_of.pop(image_id)[0]} for image_id in gone]
        live = sorted({content for _, content in self.content_of.values()})
        next_doc, rows, edges, embedded = self.known.next_doc, [], [], []
        for doc in range(next_doc, next_doc + num_new):
            is_copy = bool(arriving) and self.rng.random() < 0.3
            content = int(self.rng.choice(arriving)) if is_copy else doc
            # Some come under the id of one that has gone.
            image_id = gone.pop() if gone and self.rng.random() < 0.3 else f"{self.rng.integers(1000):03d}-{doc}"
            self.content_of[image_id] = (doc, content)
            size = {"width": int(self.rng.integers(1, 4)), "height": 1, "size_bytes": int(self.rng.integers(1, 100))}
            rows.append({"image_id": image_id, "doc": doc, "original_doc": content, **size})
            if content < doc:
                continue
            if self.rng.random() < 0.1:
                self.rejected.add(doc)
                continue
            others = [other for other in live if other not in self.rejected and self.rng.random() < SHARE_MATCHING]
            scores = self.rng.integers(80, 100, len(others)) / 100
            edges += [
                {"left_doc": other, "right_doc": doc, "score": score, "similarity": score, "shared_terms": 1}
                for other, score in zip(others, scores.tolist(), strict=True)
            ]
            live.append(doc)
            embedded.append({"doc": doc, "embedding": b""})
        known = self.known
        return replace(
            known,
            next_doc=next_doc + num_new,
            catalogues=(*known.catalogues, self.table(rows, schemas.CATALOGUE, CATALOGUE)),
            removed=(*known.removed, self.table(removed, schemas.REMOVED)),
            embeddings=(*known.embeddings, self.table(embedded, schemas.EMBEDDINGS)),
            edges=(*known.edges, self.table(edges, schemas.EDGES)),
        )

    def cluster(self, whole: Known, decisions: Decisions, *, is_update: bool) -> tuple[Known, dict[str, Any], Path]:
        """All there is once it is clustered, the figures, and the folder of the step."""
        self.num_tables += 1
        folder = self.folder / f"cluster-{self.num_tables}"
        folder.mkdir()
        before = self.known if self.known.assignments else None
        stats = dict(cluster_matches(folder, whole=whole, decisions=decisions, before=before, is_update=is_update))
        write_json(folder / "commit.json", {"stats": stats})
        earlier = (whole.assignments, whole.crowd_edges) if is_update else ((), ())
        assignments, crowd_edges = (
            (*tables, str(folder / name)) for tables, name in zip(earlier, ("assignments", "crowd_edges"), strict=True)
        )
        return replace(whole, assignments=assignments, crowd_edges=crowd_edges), stats, folder

    def decide(self, number: int) -> Decision:
        """A split or a merge of some images, exact copies among them."""
        named = self.rng.permutation(sorted(self.content_of)).tolist()[:3]
        is_split = self.rng.random() < 0.5
        return Decision(
            kind=DecisionKind.SPLIT if is_split else DecisionKind.MERGE,
            groups=tuple((image_id,) for image_id in named) if is_split else (tuple(named),),
            by="test",
            reason="",
            number=number,
        )


def by_id(table: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in table.to_pylist()}


@pytest.mark.parametrize("seed", range(40))
def test_an_update_comes_to_what_looking_at_everything_comes_to(tmp_path: Path, seed: int) -> None:
    """After each night clusters and figures are those of all images, whatever comes, goes and was decided by hand.

    What is written leads from the clusters of the night before to those of today, image by image.
    """
    nights = Nights(tmp_path, np.random.default_rng(seed))
    decided: tuple[Decision, ...] = ()
    nights.known, _, _ = nights.cluster(nights.change(num_new=25, num_removed=0), Decisions(), is_update=False)
    for number in range(1, 6):
        if seed % 2 and number < 4:
            decided = (*decided, nights.decide(number))
            nights.known, _, _ = nights.cluster(nights.known, Decisions(decided), is_update=False)
        whole = nights.change(num_new=int(nights.rng.integers(0, 9)), num_removed=int(nights.rng.integers(0, 6)))
        expected, expected_stats, _ = nights.cluster(whole, Decisions(decided), is_update=False)
        updated, stats, folder = nights.cluster(whole, Decisions(decided), is_update=True)
        assert read_clusters(updated).to_pylist() == read_clusters(expected).to_pylist()
        assert {**stats, "is_update": False} == expected_stats
        rows = by_id(read_clusters(nights.known))
        for image_id in pq.read_table(folder / "unclustered")["image_id"].to_pylist():
            del rows[image_id]
        rows |= by_id(pq.read_table(folder / "clusters"))
        assert rows == by_id(read_clusters(expected))
        nights.known = updated


def test_an_update_leaves_alone_what_nothing_reaches(tmp_path: Path) -> None:
    """Clusters that no image has joined or left are not written again."""
    nights = Nights(tmp_path, np.random.default_rng(1))
    images = [{"image_id": str(doc), "doc": doc, "original_doc": doc, "width": 1, "height": 1} for doc in range(5)]

    def edges(*ends: tuple[int, int]) -> str:
        rows = [{"left_doc": left, "right_doc": right, "score": 0.9} for left, right in ends]
        return nights.table(rows, schemas.EDGES)

    first = Known(
        next_doc=4,
        catalogues=(nights.table(images[:4], schemas.CATALOGUE, CATALOGUE),),
        embeddings=(nights.table(images[:4], schemas.EMBEDDINGS),),
        edges=(edges((0, 1), (2, 3)),),
    )
    nights.known, _, _ = nights.cluster(first, Decisions(), is_update=False)
    second = replace(
        nights.known,
        next_doc=5,
        catalogues=(*first.catalogues, nights.table(images[4:], schemas.CATALOGUE, CATALOGUE)),
        embeddings=(*first.embeddings, nights.table(images[4:], schemas.EMBEDDINGS)),
        edges=(*first.edges, edges((2, 4))),
    )
    _, stats, folder = nights.cluster(second, Decisions(), is_update=True)
    assert pq.read_table(folder / "clusters")["image_id"].to_pylist() == ["2", "3", "4"]
    assert pq.read_table(folder / "assignments").to_pylist() == [
        {"doc": 4, "canonical_doc": 2, "score": np.float32(0.9)}
    ]
    assert (stats["num_clusters"], stats["num_duplicates"]) == (2, 3)
