"""Rules of the archive of Spark's classes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from batch_jobs.class_archive import java_options
from batch_jobs.session import own_settings


def archive_in(prefix: Path, content: bytes, *, size_bytes: int) -> Path:
    path = prefix / "share" / "neardup" / f"spark-classes-{size_bytes}.jsa"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_an_archive_that_was_cut_short_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Java would not survive it; a session starts without."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert java_options() == ()
    archive = archive_in(tmp_path, b"half", size_bytes=8)
    assert java_options() == ()
    archive.write_bytes(b"archives")
    assert java_options()[0] == f"-XX:SharedArchiveFile={archive}"


def test_a_path_with_blanks_stays_one_option(tmp_path: Path) -> None:
    """Spark splits what Java is told as a shell does."""
    option = "-XX:SharedArchiveFile=/a b/c.jsa"
    told = own_settings("local[2]", tmp_path / "spark.log", (option,))["spark.driver.extraJavaOptions"]
    assert option in shlex.split(told)


@pytest.mark.spark
def test_a_local_session_reads_spark_from_the_archive(tmp_path: Path) -> None:
    """The one that setup has made fits the Java and the jars that are installed."""
    options = java_options()
    if not options:
        pytest.skip("there is no archive; `python -m batch_jobs.class_archive` makes one")
    loaded = tmp_path / "loaded.txt"
    program = f"""
from pathlib import Path
from batch_jobs.session import spark_session
options = ({options[0]!r}, "-Xlog:disable", "-Xlog:class+load:file={loaded}")
with spark_session(master="local[1]", log=Path({str(tmp_path / "spark.log")!r}), java_options=options) as spark:
    assert spark.range(10).count() == 10
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    classes = [line for line in loaded.read_text().splitlines() if " org.apache.spark." in line]
    assert sum("shared objects file" in line for line in classes) > 1000
    assert sum(".jar" in line for line in classes) < 100
