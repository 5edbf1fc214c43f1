"""The door for `spark-submit`: run the pipeline up to one step, on the session that `spark-submit` made.

    spark-submit batch_jobs/pipeline.py --source images.parquet --workspace /data/neardup
    spark-submit batch_jobs/find_candidates.py --source images.parquet --workspace /data/neardup

Steps that are already committed are reused, so the files can be submitted one after the other as well as at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from batch_jobs.cluster_matches import STEP as LAST_STEP
from batch_jobs.errors import BatchError
from batch_jobs.exports import export_run, run_counts
from batch_jobs.pipeline import VIEW_STEPS, Run, run_pipeline
from batch_jobs.run_records import finish_record
from batch_jobs.settings import RunSettings
from batch_jobs.workspace import Workspace
from embed.embedder_dir import DTYPES
from embed.errors import EmbedError
from lsh.errors import LshError


def main(*, until: str = LAST_STEP) -> None:
    """Parse the command line, run up to `until`, print the outputs as one JSON object."""
    parser = argparse.ArgumentParser(description=f"Run the pipeline up to the step {until}.")
    parser.add_argument("--source", required=True, help="folder, glob, .parquet table or .npz of embeddings")
    parser.add_argument("--workspace", required=True, type=Path, help="folder that driver and executors share")
    parser.add_argument("--embedder", default="vgg_copy", help="built-in embedder, or a directory on every executor")
    parser.add_argument(
        "--dtype", choices=DTYPES, help="precision of the network; int8, where there is one, by default"
    )
    parser.add_argument("--min-score", type=float, help="lowest score of a match; the embedder's own by default")
    parser.add_argument(
        "--thorough",
        action="store_true",
        default=until in VIEW_STEPS,
        help="compare parts and versions of each image too",
    )
    parser.add_argument("--max-reject-ratio", type=float, default=1.0)
    parser.add_argument("--uri-root", type=Path, help="folder that a table's uris may point into")
    parser.add_argument("--num-partitions", type=int, help="two for each core of the session by default")
    outputs: dict[str, str] = {}

    def finish(run: Run, workspace: Workspace) -> None:
        if until == LAST_STEP:
            outputs.update(export_run(run, workspace))
            finish_record(
                workspace, run.run_id, seconds=run.seconds, results={**run_counts(run), "outputs": dict(outputs)}
            )
        else:
            outputs.update({name: run.steps[until].table(name) for name in run.steps[until].num_rows})

    try:
        settings = RunSettings(**vars(parser.parse_args()))
        run_pipeline(settings, until=until, and_then=finish)
    except (BatchError, EmbedError, LshError) as error:
        sys.exit(f"neardup: error: {error}")
    sys.stdout.write(json.dumps({"step": until, "outputs": outputs}) + "\n")
