"""How much memory an executor needs: where the pipeline's batch sizes become Spark's settings.

    spark-submit $(python -m batch_jobs.memory --cores 4) batch_jobs/pipeline.py ...

A task is one Python worker; its arrays lie outside the JVM, in what Spark calls the overhead. The bytes per row below
are peaks measured at the largest batch of each step (dim 256, 56 tables), rounded up. `spark.executor.pyspark.memory`
is left alone: it limits addresses instead of memory, and TensorFlow reserves many more than it uses.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from typing import Final

from batch_jobs.find_candidates import PART_BYTES
from batch_jobs.make_terms import DOCS_PER_BLOCK
from batch_jobs.pipeline import MAX_DOCS_PER_RANGE
from batch_jobs.select_matches import PAIRS_AT_ONCE
from batch_jobs.session import BYTES_PER_ARROW_BATCH, ROWS_PER_ARROW_BATCH
from lsh.terms import terms_for

MIB: Final = 1 << 20
WORKER_BYTES: Final = 200 * MIB
"""A Python worker with numpy, pyarrow and our kernels."""
NETWORK_BYTES: Final = 700 * MIB
"""TensorFlow, the network and a batch in it."""
LARGEST_SQUARE: Final = 224
"""Side in pixels of the squares that the largest built-in network takes."""
BYTES_PER_PAIR: Final = 50
JVM_BYTES: Final = 512 * MIB
JVM_BYTES_PER_TASK: Final = 768 * MIB
"""The JVM moves batches of images of at most some 64 MiB for each task, several copies at once."""
MIN_OVERHEAD_BYTES: Final = 384 * MIB
LARGEST_TERMS: Final = terms_for(1 << 40)
"""Those of a run without a plan that take most memory."""


@dataclass(frozen=True, slots=True)
class TaskMemory:
    """Bytes that the Python worker of one task holds at its peak, by step."""

    embed: int
    terms: int
    candidates: int
    select: int

    @property
    def peak(self) -> int:
        return max(self.embed, self.terms, self.candidates, self.select)


def task_memory(*, dim: int, num_tables: int, square: int = LARGEST_SQUARE) -> TaskMemory:
    """The peaks of one task for embeddings of `dim`, `num_tables` hash tables and a network of `square` pixels."""
    squares = ROWS_PER_ARROW_BATCH * square * square * 3
    return TaskMemory(
        embed=WORKER_BYTES + NETWORK_BYTES + 2 * BYTES_PER_ARROW_BATCH + 2 * squares,
        terms=WORKER_BYTES + max(DOCS_PER_BLOCK * (12 * dim + 80 * num_tables), PART_BYTES),
        candidates=WORKER_BYTES + PART_BYTES,
        select=WORKER_BYTES + MAX_DOCS_PER_RANGE * 2 * 3 * dim + PAIRS_AT_ONCE * BYTES_PER_PAIR,
    )


def executor_settings(
    *, num_cores: int, dim: int = LARGEST_TERMS.dim, num_tables: int = LARGEST_TERMS.num_tables
) -> dict[str, str]:
    """Spark's settings of an executor that runs `num_cores` tasks at once.

    >>> executor_settings(num_cores=1)["spark.executor.memory"]
    '1280m'
    """
    heap = JVM_BYTES + num_cores * JVM_BYTES_PER_TASK
    tasks = num_cores * task_memory(dim=dim, num_tables=num_tables).peak
    overhead = tasks + max(MIN_OVERHEAD_BYTES, heap // 10)
    return {
        "spark.executor.cores": str(num_cores),
        "spark.executor.memory": f"{math.ceil(heap / MIB)}m",
        "spark.executor.memoryOverhead": f"{math.ceil(overhead / MIB)}m",
    }


def main() -> None:
    """Print the settings as arguments of `spark-submit`."""
    parser = argparse.ArgumentParser(description="Settings of an executor, as arguments of spark-submit.")
    parser.add_argument("--cores", type=int, required=True, help="tasks that an executor runs at once")
    parser.add_argument("--dim", type=int, default=LARGEST_TERMS.dim, help="of the embeddings")
    parser.add_argument("--tables", type=int, default=LARGEST_TERMS.num_tables, help="hash tables of the plan")
    arguments = parser.parse_args()
    for name in ("cores", "dim", "tables"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} {getattr(arguments, name)} is out of range; give 1 or more")
    settings = executor_settings(num_cores=arguments.cores, dim=arguments.dim, num_tables=arguments.tables)
    sys.stdout.write("".join(f"--conf {key}={value}\n" for key, value in settings.items()))


if __name__ == "__main__":
    main()
