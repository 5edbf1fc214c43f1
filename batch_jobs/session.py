"""The Spark session: the one `spark-submit` made, or one of our own, local unless a cluster's master is given.

Spark's own chatter goes to `spark.log` in the workspace, so an operator's terminal shows only what we say.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_jobs.class_archive import java_options as archive_options
from batch_jobs.errors import SessionError
from batch_jobs.task_files import integer_encodings
from lsh.numpy_dispatch import DISABLED

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MIN_JAVA = 17
POLL_S = 0.25
WAIT_S = 15.0
"""Without any executor, after which a run says what it waits for."""
DRIVER_BYTES = 2 << 30
"""Of the driver's JVM, for its own; what tasks need comes on top where they run inside it."""
ROWS_PER_GROUP = 16_384
SHUFFLE_PARTITIONS = "spark.sql.shuffle.partitions"
ROWS_PER_SHUFFLE_PART = 100_000
"""Some 20 MB of the catalogue."""
LOCAL_MASTER = "local[*]"
ROWS_PER_ARROW_BATCH = 2048
BYTES_PER_ARROW_BATCH = 64 << 20
"""What Spark hands a Python worker at once, at most."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Session:
    """The Spark session of a run, started when it is first asked for: a run of small steps never waits for it.

    Use it as a context manager; a session that was started is stopped at the end.
    """

    def __init__(self, *, master: str | None, log: Path) -> None:
        self._master = master
        self._log = log
        self._started: SparkSession | None = None
        self._open = ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._started = None
        self._open.__exit__(*raised)

    @property
    def spark(self) -> SparkSession:
        return self.start()

    def start(self) -> SparkSession:
        """The session, which is started unless it is there."""
        if self._started is None:
            self._started = self._open.enter_context(spark_session(master=self._master, log=self._log))
        return self._started

    @property
    def is_optional(self) -> bool:
        """Whether nobody asked for Spark: no master is given, nor is there a session of other machines."""
        if self._master is not None or _is_submitted():
            return False
        if "pyspark.sql" not in sys.modules:
            return True
        running = _running_session()
        return running is None or runs_locally(str(running.sparkContext.master))

    @property
    def parallelism(self) -> int:
        """Tasks that run at once: those of the session, or one a core where it may never start."""
        if self._started is None and self.is_optional:
            return num_cores()
        return default_parallelism(self.spark)

    @contextmanager
    def watched(self, progress: Callable[[float], None], waiting: Callable[[str], None]) -> Iterator[None]:
        """Report the share of finished tasks of the running Spark stages, in 0..1, while the block runs.

        `waiting` is told once for what tasks wait, where no machine has taken any for `WAIT_S`.
        """
        stop = threading.Event()

        def watch() -> None:
            idle_since = time.monotonic()
            has_told = False
            while not stop.wait(POLL_S):
                if self._started is None:
                    continue
                with suppress(Exception):  # a stage may end between the two calls; progress is only a courtesy
                    tracker = self._started.sparkContext.statusTracker()
                    stages = [stage for one in tracker.getActiveStageIds() if (stage := tracker.getStageInfo(one))]
                    total = sum(stage.numTasks for stage in stages)
                    if total:
                        progress(sum(stage.numCompletedTasks for stage in stages) / total)
                    if not stages or has_executors(self._started):
                        idle_since = time.monotonic()
                    elif not has_told and time.monotonic() - idle_since > WAIT_S:
                        has_told = True
                        waiting(wanted_executors(self._started))

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def spark_session(
    *, master: str | None, log: Path, java_options: Sequence[str] | None = None
) -> Iterator[SparkSession]:
    """A session for the block: one that runs is reused and left running, a new one is stopped at the end.

    A new local one has `java_options`, by default those of the class archive.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="PySpark does not yet fully support pandas", category=FutureWarning)
        # After Ctrl-C the gateway may be gone before it says goodbye.
        warnings.filterwarnings("ignore", message="Unable to cleanly shutdown Spark", category=RuntimeWarning)
        from py4j.protocol import Py4JError

        running = _running_session()
        if running is not None:
            yield running
            return
        spark = _start(master, log, archive_options() if java_options is None else java_options)
        try:
            yield spark
        finally:
            # A JVM that died cannot be stopped, and what it died of is being told already.
            with suppress(Py4JError, OSError):
                spark.stop()


def _running_session() -> SparkSession | None:
    """The session of the process, whichever thread asks: Java knows one for each connection, and those come and go."""
    from pyspark.sql import SparkSession

    running = SparkSession._instantiatedSession
    return running if running is not None and running.sparkContext._jsc is not None else None


def _start(master: str | None, log: Path, java_options: Sequence[str]) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("neardup")
    submitted = _is_submitted()
    if not submitted:
        _require_java()
        # `spark-submit` decides these; where it did not run the workers run what the driver runs.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        builder = builder.config(map={**own_settings(master or LOCAL_MASTER, log, java_options)})
    builder = (
        builder.config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(ROWS_PER_ARROW_BATCH))
        .config("spark.sql.execution.arrow.maxBytesPerBatch", str(BYTES_PER_ARROW_BATCH))
        # The pipeline sizes its own partitions; merging small ones would leave cores idle.
        .config("spark.sql.adaptive.enabled", "false")
        .config("spark.python.worker.reuse", "true")
        # A worker loads numpy before anything of ours, so it cannot choose.
        .config(map={f"spark.executorEnv.{DISABLED}": os.environ[DISABLED]} if DISABLED in os.environ else {})
    )
    shutil.rmtree(log.parent / ".spark", ignore_errors=True)  # what a killed session left
    if not submitted and not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.FileHandler(log, delay=True))  # where py4j complains
    with _stderr_to(log, enabled=not submitted), _interrupts_deferred():
        try:
            spark = builder.getOrCreate()
        except Exception as error:
            raise SessionError(f"Spark did not start ({error}); its log is {log}") from error
    if not submitted:
        spark.sparkContext.setLogLevel("ERROR")
        # It would print a traceback when the JVM dies, which is told anyway.
        setattr(spark.sparkContext._accumulatorServer, "handle_error", lambda *_: None)  # noqa: B010
    return spark


def _is_submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def runs_locally(master: str) -> bool:
    """Whether a master runs every task inside the driver's own process.

    >>> runs_locally("local[4]"), runs_locally("spark://host:7077")
    (True, False)
    """
    return re.fullmatch(r"local(\[[^]]*\])?", master) is not None


def local_tasks(master: str) -> int:
    """Tasks that a local master runs at once.

    >>> local_tasks("local"), local_tasks("local[4]"), local_tasks("local[3,2]")
    (1, 4, 3)
    """
    asked = re.fullmatch(r"local(?:\[([^],]*).*\])?", master)
    number = asked[1] if asked else None
    if number is None:
        return 1
    return int(number) if number.isdigit() else num_cores()


def own_settings(master: str, log: Path, java_options: Sequence[str] = ()) -> dict[str, str]:
    """What `spark-submit` would have been told: a small driver, and executors that any machine of a cluster can run."""
    from batch_jobs.memory import JVM_BYTES_PER_TASK, executor_settings

    heap = DRIVER_BYTES + (local_tasks(master) * JVM_BYTES_PER_TASK if runs_locally(master) else 0)
    settings = {
        "spark.master": master,
        "spark.driver.memory": f"{heap >> 20}m",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(log.parent / ".spark-warehouse"),
    }
    if not runs_locally(master):
        return {**settings, **executor_settings(num_cores=1)}
    return {
        **settings,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        # The JVM only moves images; compiling its code well would cost more time than it saves.
        "spark.driver.extraJavaOptions": shlex.join(("-XX:TieredStopAtLevel=1", *java_options)),
        "spark.local.dir": str(log.parent / ".spark"),
    }


def _require_java() -> None:
    java = str(Path(os.environ["JAVA_HOME"], "bin", "java")) if os.environ.get("JAVA_HOME") else shutil.which("java")
    how = f"Spark needs Java {MIN_JAVA} or newer; install it (Debian: apt-get install openjdk-17-jre-headless)"
    if java is None:
        raise SessionError(f"no Java found; {how}")
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr  # noqa: S603
        major = int(said.split('"')[1].split(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        raise SessionError(f"{java} does not run ({error}); {how}") from error
    if major < MIN_JAVA:
        raise SessionError(f"{java} is Java {major}; {how}, or set JAVA_HOME")


@contextmanager
def _stderr_to(log: Path, *, enabled: bool) -> Iterator[None]:
    """Point file descriptor 2 at `log` while the JVM starts: the JVM and its workers inherit it for good."""
    if not enabled:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Hold Ctrl-C back while the JVM starts: a driver that leaves before they shake hands leaves the JVM behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        yield
    finally:
        # This also takes away Spark's own handler, which talks to the JVM in the middle of another talk;
        # stopping the session cancels its jobs as well.
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def cores_per_task(spark: SparkSession) -> int:
    """Cores that a task may keep busy: its share of this machine, or what the cluster gives it."""
    context = spark.sparkContext
    if runs_locally(str(context.master)):
        return max(1, num_cores() // default_parallelism(spark))
    return int(context.getConf().get("spark.task.cpus", "1"))


def has_executors(spark: SparkSession) -> bool:
    """Whether any process may run tasks: the driver itself where it runs locally, else an executor."""
    java = spark.sparkContext._jsc  # Python's status tracker does not tell
    executors = java.sc().statusTracker().getExecutorInfos() if java else ()
    return runs_locally(str(spark.sparkContext.master)) or len(executors) > 1


def wanted_executors(spark: SparkSession) -> str:
    """What a run without executors waits for, in an operator's words."""
    conf = spark.sparkContext.getConf()
    master = spark.sparkContext.master
    wanted = {key: conf.get(f"spark.executor.{key}", None) for key in ("cores", "memory", "memoryOverhead")}
    given = ", ".join(f"{key}={value}" for key, value in wanted.items() if value is not None)
    return (
        f"{master} has started no executor for {WAIT_S:.0f} s; one asks for {given or 'all that a worker has'}: see "
        "what its workers have free, wait, or stop here and go on later with the same command"
    )


def default_parallelism(spark: SparkSession) -> int:
    """Tasks that the session runs at once."""
    return max(1, spark.sparkContext.defaultParallelism)


@contextmanager
def sized_shuffles(spark: SparkSession, num_rows: int, *, at_least: int) -> Iterator[None]:
    """In the block Spark sorts and joins so many rows in as many parts as they need, unless its settings say how many.

    Of a few thousand rows each of its usual 200 tasks takes longer to start than to sort its share.
    """
    from py4j.protocol import Py4JError

    if spark.sparkContext.getConf().contains(SHUFFLE_PARTITIONS):
        yield
        return
    before = spark.conf.get(SHUFFLE_PARTITIONS)
    spark.conf.set(SHUFFLE_PARTITIONS, str(max(at_least, -(-num_rows // ROWS_PER_SHUFFLE_PART))))
    try:
        yield
    finally:
        # The session may be that of a program with other work; in a JVM that died nothing is put back.
        with suppress(Py4JError, OSError):
            spark.conf.set(SHUFFLE_PARTITIONS, str(before))


def read_table(spark: SparkSession, *paths: str) -> DataFrame:
    """A Parquet table, or the files of one, whose names Hadoop would take for patterns."""
    return spark.read.parquet(*(re.sub(r"([][{}*?\\])", r"\\\1", path) for path in paths))


def write_table(frame: DataFrame, path: Path, *, num_files: int | None = None) -> None:
    """Write a Parquet table; `num_files` None keeps the frame's partitions."""
    frame = frame.coalesce(num_files) if num_files else frame
    frame.write.mode("overwrite").option("compression", "zstd").parquet(str(path))


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write a table that is already on the driver, in the same form."""
    path.mkdir()
    # Ids hardly repeat: a dictionary of them takes longer to make and more bytes than they do.
    pq.write_table(
        table,
        path / "part-00000.parquet",
        compression="zstd",
        row_group_size=ROWS_PER_GROUP,
        use_dictionary=False,
        column_encoding=integer_encodings(table.schema),
    )
