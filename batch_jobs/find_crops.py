"""Step 5b, crops, where they are asked for: matches of an image with a part of another.

Regions are hashed, joined and verified like images, by the same steps, but only with whole images: to the join they are
a night's new docs. The best region of a pair that is no match yet makes it one, by the threshold of all matches and a
margin.
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
from embed.regions import NUM_REGIONS, REGION_MARGIN
from lsh.candidates import CandidateParams
from lsh.leaders import NO_LEADERS
from lsh.sorting import starts_of_runs
from lsh.terms import TermParams

STEP = "crops"
TABLES = ("crop_edges",)
EDGES_ARROW = schemas.arrow(schemas.EDGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """What the steps before have made of whole images: paths of tables, and how they are cut up."""

    term_blocks: str
    codes: str
    edges: str
    num_parts: int
    docs_per_range: int


def find_crops(
    runner: TaskRunner,
    folder: Path,
    *,
    regions: str,
    first_region: int,
    images: Images,
    terms: TermParams,
    candidates: CandidateParams,
    selection: select_matches.Selection,
) -> Mapping[str, Any]:
    """Write `crop_edges`: matches through a region, of pairs that `images.edges` does not have."""
    work = folder / "work"
    work.mkdir()
    make_terms.make_terms(
        runner, work, embeddings=regions, params=terms, num_partitions=images.num_parts, is_night=True
    )
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
        selection=replace(selection, margin=REGION_MARGIN),
        docs_per_range=images.docs_per_range,
    )
    of_regions = read_columns((str(work / "edges"),), EDGES_ARROW.names)
    matched = read_columns((images.edges,), ["left_doc", "right_doc"])
    write_arrow(crop_edges(of_regions, matched, first_region=first_region), folder / "crop_edges")
    shutil.rmtree(work)
    return {"num_region_pairs": selected["num_distinct_pairs"], "num_cut_buckets": found["num_cut_buckets"]}


def crop_edges(of_regions: pa.Table, matched: pa.Table, *, first_region: int) -> pa.Table:
    """Matches of images with regions as `EDGES` of images: of each pair the best region, none that is in `matched`.

    An image's own regions are no matches.
    """
    images = of_regions["left_doc"].to_numpy()
    owners = (of_regions["right_doc"].to_numpy() - first_region) // NUM_REGIONS
    lefts, rights = np.minimum(images, owners), np.maximum(images, owners)
    is_wanted = (lefts != rights) & ~np.isin(
        _keys(lefts, rights), _keys(*(matched[end].to_numpy() for end in ("left_doc", "right_doc")))
    )
    scores, shared_terms = of_regions["score"].to_numpy(), of_regions["shared_terms"].to_numpy()
    similarities = of_regions["similarity"].to_numpy()
    order = np.lexsort((-shared_terms, -similarities, -scores, rights, lefts))
    order = order[is_wanted[order]]
    best = order[starts_of_runs(lefts[order].astype(np.uint64), rights[order].astype(np.uint64))]
    columns = [lefts, rights, similarities, scores, shared_terms]
    return pa.table([column[best] for column in columns], schema=EDGES_ARROW)


def _keys(lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each pair of docs, which are below 2^31 where images are given regions."""
    keys: NDArray[np.int64] = lefts << 32 | rights
    return keys


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
