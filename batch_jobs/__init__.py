"""The nightly pipeline on Spark, one file per step."""

import lsh  # noqa: F401 - it says how numpy may sort, and pyarrow loads numpy
