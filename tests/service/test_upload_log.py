"""The upload log: what was acknowledged is there after a crash, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from service.errors import LogError, LogFull
from service.upload_log import LogEntry, UploadLog

DIGEST = "d" * 64


def opened(path: Path, *, digest: str = DIGEST) -> UploadLog:
    return UploadLog(path, embedder_digest=digest, dim=4)


def registered_ids(log: UploadLog, **options: int) -> list[str]:
    return [image_id for block in log.registered(**options) for image_id in block.image_ids]


def test_the_last_entry_of_an_image_counts(tmp_path: Path) -> None:
    """Replay gives registered images oldest first, without removed ones, each once."""
    log = opened(tmp_path / "log.db")
    for image_id, code in (("a", b"1234"), ("b", b"5678"), ("a", None), ("c", b"9999"), ("a", b"4321")):
        last = log.append(LogEntry(image_id, code, image_id))
    last.result(timeout=10)
    log.append(LogEntry("b", None, ""))
    log.close()

    log = opened(tmp_path / "log.db")

    (block,) = log.registered()
    assert (block.image_ids, block.canonical_ids) == (("c", "a"), ("c", "a"))
    assert block.codes.tobytes() == b"99994321"
    assert registered_ids(log, block_size=1) == ["c", "a"]
    assert sorted(log.removed_ids()) == ["a", "b"]
    log.close()


def test_forgotten_entries_are_gone_up_to_a_point(tmp_path: Path) -> None:
    """An entry written after the point is kept, though its image id is forgotten."""
    log = opened(tmp_path / "log.db")
    log.append(LogEntry("a", b"1234", "a"))
    log.append(LogEntry("b", b"1234", "b")).result(timeout=10)
    until = log.last_seq()
    log.append(LogEntry("a", None, "")).result(timeout=10)

    log.forget(["a", "b"], until_seq=until)

    assert registered_ids(log) == []
    assert log.removed_ids() == ["a"]
    log.close()


def test_a_second_server_is_refused(tmp_path: Path) -> None:
    """The log belongs to one process at a time; the error says what to do."""
    log = opened(tmp_path / "log.db")
    program = f"from tests.service.test_upload_log import *; opened(Path({str(tmp_path / 'log.db')!r}))"

    second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert "in use by another server" in second.stderr
    log.close()


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    """Codes of different embedders must never meet."""
    opened(tmp_path / "log.db").close()

    with pytest.raises(LogError, match="embedder_digest"):
        opened(tmp_path / "log.db", digest="e" * 64)


def test_a_file_that_is_no_log_is_refused(tmp_path: Path) -> None:
    """Bytes that are no database give an error of ours."""
    (tmp_path / "log.db").write_bytes(b"not a database, but long enough to be looked at" * 100)

    with pytest.raises(LogError, match="cannot be used"):
        opened(tmp_path / "log.db")


def test_a_full_disk_fails_the_entry_and_not_the_log(tmp_path: Path) -> None:
    """An entry that finds no room has its error; with room again, the next one is written."""
    log = opened(tmp_path / "log.db")
    log.append(LogEntry("before", b"1234", "before")).result(timeout=10)
    num_pages = log._query("PRAGMA page_count")[0][0]
    log._query(f"PRAGMA max_page_count={num_pages}")

    too_much = log.append(LogEntry("too-much", bytes(1 << 20), "x"))
    with pytest.raises(LogFull, match="full"):
        too_much.result(timeout=10)

    log._query("PRAGMA max_page_count=100000")
    log.append(LogEntry("after", b"1234", "after")).result(timeout=10)
    assert registered_ids(log) == ["before", "after"]
    log.close()


def test_a_code_of_another_size_is_damage(tmp_path: Path) -> None:
    """A blob that is no code of this embedder is told as such when it is read."""
    log = opened(tmp_path / "log.db")
    log.append(LogEntry("a", b"123", "a")).result(timeout=10)

    with pytest.raises(LogError, match="has not 4 bytes"):
        registered_ids(log)
    log.close()


def test_errors_in_use_name_the_file_and_not_its_place(tmp_path: Path) -> None:
    """Callers from afar see these messages, and need not know the server's folders."""
    log = opened(tmp_path / "log.db")

    with pytest.raises(LogError, match=r"the upload log log\.db cannot be used"):
        log._query("SELECT nothing FROM nowhere")
    log.close()


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 50))])
def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, seed: int) -> None:
    """After SIGKILL in the middle of writing, every entry reported as written is there, and the log opens."""
    program = textwrap.dedent(f"""
        from tests.service.test_upload_log import *
        log = opened(Path({str(tmp_path / "log.db")!r}))
        for first in range(0, 100_000, 7):
            written = [log.append(LogEntry(str(first + i), b"1234", "x")) for i in range(7)]
            for i, future in enumerate(written):
                future.result()
                print(first + i, flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(50 + 61 * seed)]
        process.kill()
        told += process.stdout.read().split("\n")[:-1]

    log = opened(tmp_path / "log.db")

    assert set(told) - {""} <= set(registered_ids(log))
    log.close()
