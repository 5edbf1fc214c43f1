"""Step 5b, compare, in thorough runs: matches of an image with a view of another.

Views are hashed, joined and verified like images, by the same steps, but only with whole images: to the join they are
a night's new docs. The best view of a pair that is no match yet makes it one, by the threshold of all matches and the
view's margin.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_jobs import find_candidates, make_terms, schemas, select_matches
from batch_jobs.nights import read_columns
from batch_jobs.session import write_arrow
from batch_jobs.task_runners import TaskRunner
from embed.views import NUM_VIEWS, VIEW_MARGINS
from lsh.candidates import CandidateParams
from lsh.leaders import NO_LEADERS
from lsh.sorting import starts_of_runs
from lsh.terms import TermParams

STEP = "compare"
TABLES = ("view_edges",)
EDGES_ARROW = schemas.arrow(schemas.EDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What the steps before have made of whole images: paths of tables, and how they are cut up."""

    term_blocks: str
    codes: str
    edges: str
    num_parts: int
    docs_per_range: int


def compare_views(
    runner: TaskRunner,
    folder: Path,
    *,
    views: str,
    first_view: int,
    images: Images,
    terms: TermParams,
    candidates: CandidateParams,
    selection: select_matches.Selection,
) -> Mapping[str, Any]:
    """Write `view_edges`: matches through a view, of pairs that `images.edges` does not have."""
    work = folder / "work"
    work.mkdir()
    make_terms.make_terms(runner, work, embeddings=views, params=terms, num_partitions=images.num_parts, is_night=True)
    join = find_candidates.Join(
        new=str(work / "term_blocks"),
        known=(images.term_blocks,),
        removed_docs=np.empty(0, np.int64),
        leaders=NO_LEADERS,
        params=candidates,
        docs_per_range=images.docs_per_range,
        among_new=False,
    )
    found = find_candidates.find_candidates(runner, work, join=join, num_parts=images.num_parts)
    selected = select_matches.select_matches(
        runner,
        work,
        pair_blocks=str(work / "pair_blocks"),
        codes=(images.codes, str(work / "codes")),
        selection=replace(selection, margins=select_matches.Margins(first_view, VIEW_MARGINS)),
        docs_per_range=images.docs_per_range,
    )
    of_views = read_columns((str(work / "edges"),), EDGES_ARROW.names)
    matched = read_columns((images.edges,), ["left_doc", "right_doc"])
    write_arrow(view_edges(of_views, matched, first_view=first_view), folder / "view_edges")
    shutil.rmtree(work)
    return {"num_view_pairs": selected["num_distinct_pairs"], "num_cut_buckets": found["num_cut_buckets"]}


def view_edges(of_views: pa.Table, matched: pa.Table, *, first_view: int) -> pa.Table:
    """Matches of images with views as `EDGES` of images: of each pair the best view, none that is in `matched`.

    An image's own views are no matches.
    """
    images = of_views["left_doc"].to_numpy()
    owners = (of_views["right_doc"].to_numpy() - first_view) // NUM_VIEWS
    lefts, rights = np.minimum(images, owners), np.maximum(images, owners)
    is_wanted = (lefts != rights) & ~np.isin(
        _keys(lefts, rights), _keys(*(matched[end].to_numpy() for end in ("left_doc", "right_doc")))
    )
    scores, shared_terms = of_views["score"].to_numpy(), of_views["shared_terms"].to_numpy()
    similarities = of_views["similarity"].to_numpy()
    order = np.lexsort((-shared_terms, -similarities, -scores, rights, lefts))
    order = order[is_wanted[order]]
    best = order[starts_of_runs(lefts[order].astype(np.uint64), rights[order].astype(np.uint64))]
    columns = [lefts, rights, similarities, scores, shared_terms]
    return pa.table([column[best] for column in columns], schema=EDGES_ARROW)


def _keys(lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each pair of docs, which are below 2^31 where images are given views."""
    keys: NDArray[np.int64] = lefts << 32 | rights
    return keys


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
