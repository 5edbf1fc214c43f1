"""Rules of what an operator is told when Spark fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batch_jobs.errors import SessionError
from batch_jobs.operator_errors import operator_errors

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def test_errors_of_spark_are_told_in_one_line(spark: SparkSession, tmp_path: Path) -> None:
    """An operator reads the cause and where the log is, not a Java stack."""
    with pytest.raises(SessionError, match=r"Spark failed: .*spark\.log") as caught, operator_errors(tmp_path):
        spark.sql("SELECT no_such_column FROM range(1)").collect()
    assert "\n" not in str(caught.value)


def test_an_interrupt_stays_one_when_spark_stumbles_over_it(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a call leaves the JVM's answer unread, so that what is cleaned up next fails."""
    from py4j.protocol import Py4JError

    def clean_up_after_an_interrupt() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise Py4JError("An error occurred while calling o361.unpersist")

    with pytest.raises(KeyboardInterrupt), operator_errors(tmp_path):
        clean_up_after_an_interrupt()
