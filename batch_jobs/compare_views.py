"""Step 5b, compare, in thorough runs: matches of an image with a view of another.

Views are joined and verified like images, by the same steps, but only with whole images: the views of new images with
all images, and known views with the new images. Of a pair that is no match yet the best view is looked at once more,
beside the cosine of the wholes, and makes it one by the threshold of all matches.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from batch_jobs import find_candidates, schemas, select_matches
from batch_jobs.embed_views import FIRST_VIEW, views_of
from batch_jobs.nights import Known, read_columns
from batch_jobs.session import write_arrow
from batch_jobs.task_runners import TaskRunner
from embed.pair_scoring import PairScorer
from embed.views import MAX_LIFT, NUM_VIEWS, VIEW_MARGINS, lifted
from lsh.sorting import starts_of_runs

STEP = "compare"
TABLES = ("view_edges",)
EDGES_ARROW = schemas.arrow(schemas.EDGES)


def compare_views(
    runner: TaskRunner,
    folder: Path,
    *,
    whole: Known,
    join: find_candidates.Join,
    edges: str,
    num_parts: int,
    selection: select_matches.Selection,
) -> Mapping[str, Any]:
    """Write `view_edges`: matches through a view, of pairs that `edges` does not have.

    `join` has the terms of new images with themselves and known ones; of `whole` the newest tables are theirs.
    """
    work = folder / "work"
    joins = {"new_views": replace(join, new=whole.view_posting_lists[-1], known=whole.posting_lists, among_new=False)}
    *known_views, _ = whole.view_posting_lists
    if known_views:
        removed_views = views_of(join.removed_docs)
        joins["known_views"] = replace(
            join, known=tuple(known_views), removed_docs=removed_views, among_new=False, are_known_later=True
        )
    num_cut_buckets = 0
    for name, one in joins.items():
        (work / name).mkdir(parents=True)
        found = find_candidates.find_candidates(runner, work / name, join=one, num_parts=num_parts)
        num_cut_buckets += found["num_cut_buckets"]
    matches = folder / "matches"
    matches.mkdir()
    selected = select_matches.select_matches(
        runner,
        matches,
        pair_blocks=str(work),
        codes=(*whole.codes, *whole.view_codes),
        selection=replace(
            selection,
            scorer=PairScorer(),
            min_score=selection.scorer.lowest_similarity(selection.min_score) - MAX_LIFT,
            margins=select_matches.Margins(FIRST_VIEW, VIEW_MARGINS),
        ),
        docs_per_range=join.docs_per_range,
    )
    of_views = read_columns((str(matches / "edges"),), EDGES_ARROW.names)
    matched = read_columns((edges,), ["left_doc", "right_doc"])
    best = best_views(of_views, matched)
    write_arrow(matches_by_views(best, codes=whole.codes, selection=selection), folder / "view_edges")
    for done in (work, matches):
        shutil.rmtree(done)
    return {"num_view_pairs": selected["num_distinct_pairs"], "num_cut_buckets": num_cut_buckets}


def best_views(of_views: pa.Table, matched: pa.Table) -> pa.Table:
    """Images with views like them as `EDGES` of images: of each pair the best view, none that is in `matched`.

    An image's own views are no matches.
    """
    images = of_views["left_doc"].to_numpy()
    owners = (of_views["right_doc"].to_numpy() - FIRST_VIEW) // NUM_VIEWS
    lefts, rights = np.minimum(images, owners), np.maximum(images, owners)
    is_wanted = (lefts != rights) & ~np.isin(
        _keys(lefts, rights), _keys(*(matched[end].to_numpy() for end in ("left_doc", "right_doc")))
    )
    similarities, shared_terms = of_views["similarity"].to_numpy(), of_views["shared_terms"].to_numpy()
    order = np.lexsort((-shared_terms, -similarities, rights, lefts))
    order = order[is_wanted[order]]
    best = order[starts_of_runs(lefts[order].astype(np.uint64), rights[order].astype(np.uint64))]
    columns = [lefts, rights, similarities, similarities, shared_terms]
    return pa.table([column[best] for column in columns], schema=EDGES_ARROW)


def matches_by_views(best: pa.Table, *, codes: tuple[str, ...], selection: select_matches.Selection) -> pa.Table:
    """Those of `best_views` that are matches, as similar as a view counts beside their wholes, `codes`."""
    if not len(best):
        return best
    pairs = select_matches.pairs_of_codes(
        codes, np.stack([best["left_doc"].to_numpy(), best["right_doc"].to_numpy()], axis=1), dim=selection.dim
    )
    similarities = lifted(best["similarity"].to_numpy(), pairs.cosines)
    scores = pairs.scores(similarities, selection.scorer)
    looked_at = best.set_column(2, "similarity", pa.array(similarities)).set_column(3, "score", pa.array(scores))
    return looked_at.filter(pa.array(scores >= np.float32(selection.min_score))).cast(EDGES_ARROW)


def _keys(lefts: NDArray[np.int64], rights: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each pair of docs, which are below 2^31 where images are given views."""
    keys: NDArray[np.int64] = lefts << 32 | rights
    return keys


if __name__ == "__main__":
    from batch_jobs.submit import main

    main(until=STEP)
