"""The nightly pipeline on Spark, one file per step."""

from lsh.lean_imports import import_without  # before pyarrow: `lsh` says how numpy may sort, and pyarrow loads numpy

import_without("pyarrow.dataset", missing="pandas")
