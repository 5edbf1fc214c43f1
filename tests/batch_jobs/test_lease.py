"""Rules of the lease: one holder at a time, told by name, taken over when it is dead or silent for too long."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batch_jobs import lease as module
from batch_jobs.errors import LeaseHeldError, LeaseLostError
from batch_jobs.lease import Lease, current_holder

LEASE_S = 1.0
HOLD = """
import sys, time
from pathlib import Path
from batch_jobs.lease import Lease

folder, machine, lock, heartbeat_s = Path(sys.argv[1]), sys.argv[2] or None, Path(sys.argv[3]), float(sys.argv[4])
with Lease(folder, "the child", lock=lock, lease_s=1.0, heartbeat_s=heartbeat_s, machine=machine) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lease.check()
        print("still held", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture(autouse=True)
def clocks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CLOCK_SKEW_S", 0.0)


@contextmanager
def child(folder: Path, *, machine: str = "", heartbeat_s: float = 0.2) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease; one of another machine does not see our locks."""
    lock = folder.parent / f"{machine}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, machine, lock, str(heartbeat_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def lease(folder: Path, *, wait_s: float = 0.0) -> Lease:
    return Lease(folder, "the test", lock=folder.parent / ".lock", lease_s=LEASE_S, heartbeat_s=0.2, wait_s=wait_s)


def test_a_second_holder_is_told_who_holds_it_and_until_when(tmp_path: Path) -> None:
    """The message names what is done, where, by which process, and when the lease ends."""
    with child(tmp_path / "run") as process:
        holder = current_holder(tmp_path / "run", lock=tmp_path / ".lock")
        assert (holder.what, holder.pid) == ("the child", process.pid) if holder else False
        with pytest.raises(LeaseHeldError) as refused, lease(tmp_path / "run"):
            pass
    said = str(refused.value)
    assert said.startswith("the child (host ")
    assert f"process {process.pid}, since 20" in said
    assert "lasts until 20" in said


def test_a_holder_killed_on_this_machine_is_followed_at_once(tmp_path: Path) -> None:
    """After SIGKILL nobody waits for the lease to expire: the kernel has dropped the dead process's lock."""
    with child(tmp_path / "run") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert current_holder(tmp_path / "run", lock=tmp_path / ".lock") is None
        with lease(tmp_path / "run") as taken:
            assert taken.number == 2


def test_a_holder_killed_on_another_machine_is_followed_when_its_lease_expires(tmp_path: Path) -> None:
    """Without its locks, only time tells that a holder is dead; until then others are refused."""
    with child(tmp_path / "run", machine="other") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(LeaseHeldError, match="the child"), lease(tmp_path / "run"):
            pass
        with lease(tmp_path / "run", wait_s=5.0) as taken:
            assert taken.number == 2


def test_a_living_holder_on_another_machine_keeps_it(tmp_path: Path) -> None:
    """The background thread renews the lease, so that work longer than the lease is safe."""
    held = child(tmp_path / "run", machine="other")
    with held, pytest.raises(LeaseHeldError), lease(tmp_path / "run", wait_s=2.5 * LEASE_S):
        pass


def test_a_holder_that_slept_through_its_expiry_stops(tmp_path: Path) -> None:
    """A stopped process that wakes up finds that another has taken over, and never takes it back."""
    with child(tmp_path / "run", machine="other") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGSTOP)
        with lease(tmp_path / "run", wait_s=5.0) as taken:
            process.send_signal(signal.SIGCONT)
            process.stdin.write("\n")
            process.stdin.flush()
            said = process.stdout.readline()
            assert said.startswith("LeaseLostError: the test (host ")
            taken.check()


def test_a_released_lease_is_free_and_numbers_never_repeat(tmp_path: Path) -> None:
    """Each holder has a higher number than all before, which fences off those that come late."""
    numbers = []
    for _ in range(3):
        with lease(tmp_path / "run") as taken:
            numbers.append(taken.number)
        assert current_holder(tmp_path / "run", lock=tmp_path / ".lock") is None
    assert numbers == [1, 2, 3]


def test_a_file_that_is_half_written_is_held_for_a_lease(tmp_path: Path) -> None:
    """A holder that dies while it takes the lease blocks others no longer than a lease lasts."""
    (tmp_path / "run").mkdir()
    half = tmp_path / "run" / "00000004.json"
    half.write_text("{")
    with pytest.raises(LeaseHeldError, match="starting"), lease(tmp_path / "run"):
        pass
    os.utime(half, (time.time() - 60,) * 2)
    with lease(tmp_path / "run") as taken:
        assert taken.number == 5


def test_one_of_many_who_try_at_once_wins(tmp_path: Path) -> None:
    """Of ten processes that find an expired lease, each as on a machine of its own, one takes it."""
    (tmp_path / "run").mkdir()
    stale = tmp_path / "run" / "00000001.json"
    stale.write_text("{")
    os.utime(stale, (time.time() - 600,) * 2)
    program = """
import sys, time
from pathlib import Path
from batch_jobs.errors import LeaseHeldError
from batch_jobs.lease import Lease

while time.time() < float(sys.argv[3]):
    pass
try:
    with Lease(Path(sys.argv[1]), "one", lock=Path(sys.argv[2]), machine=sys.argv[2]):
        print("won", flush=True)
        sys.stdin.read()
except LeaseHeldError:
    print("refused", flush=True)
"""
    start = str(time.time() + 1.0)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "run", tmp_path / f"machine-{number}", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(10)
    ]
    outputs = [process.stdout.readline() for process in processes if process.stdout]
    for process in processes:
        process.communicate()
    assert sorted(outputs) == ["refused\n"] * 9 + ["won\n"]


def test_a_lost_lease_is_not_given_back(tmp_path: Path) -> None:
    """`check` goes on raising, and leaving the block leaves the new holder's lease alone."""
    with lease(tmp_path / "run") as first:
        successor = tmp_path / "run" / "00000002.json"
        successor.write_bytes((tmp_path / "run" / "00000001.json").read_bytes())
        for _ in range(2):
            with pytest.raises(LeaseLostError):
                first.check()
    assert (tmp_path / "run" / "00000002.json").exists()


def test_a_full_disk_keeps_nobody_from_freeing_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be written, the lease is taken, held against others, and given back all the same."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(module, "_encoded", full)
        with lease(tmp_path / "run") as held:
            held.check()
            other = Lease(tmp_path / "run", "other", lock=tmp_path / "other", lease_s=LEASE_S, machine="other")
            with pytest.raises(LeaseHeldError, match="starting"), other:
                pass
    with lease(tmp_path / "run") as again:
        assert again.number == 2


def test_a_lease_that_cannot_be_renewed_is_an_error_once_it_has_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then a full disk or a server that is away is no reason to stop."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with lease(tmp_path / "run") as held:
        monkeypatch.setattr(module, "_encoded", full)
        held.check()
        time.sleep(LEASE_S)
        with pytest.raises(OSError, match="No space left"):
            held.check()
