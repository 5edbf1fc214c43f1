"""`neardup serve` as a process: start, kill, drain, and the commands that talk to it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from service.client import NearDupClient, lookup_request
from service.errors import CallFailed
from tests.service.conftest import server_process
from tests.service.corpora import near, random_embeddings

EMBEDDINGS = random_embeddings(200)
NEW = random_embeddings(12_000, seed=77)


def neardup(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return subprocess.run([sys.executable, "-m", "cli", *arguments], capture_output=True, text=True, check=False)


def test_embedding_only_mode_never_loads_tensorflow(index: Path) -> None:
    """Nor anything else that is slow: it is ready in about a second, and TensorFlow's library is not mapped."""
    with server_process(index.parent, "--embedding-only") as server:
        with NearDupClient(server.address) as client:
            assert client.lookup(EMBEDDINGS[0]).matches[0].image_id == "image-0"
        mapped = {Path(map_.path).name for map_ in psutil.Process(server.process.pid).memory_maps()}

    assert not [name for name in mapped if "tensorflow" in name]


@pytest.mark.parametrize(
    "num_acknowledged", [40, 333, *(pytest.param(at, marks=pytest.mark.long) for at in range(7, 10_000, 199))]
)
def test_acknowledged_registers_survive_a_kill(index: Path, num_acknowledged: int) -> None:
    """SIGKILL in the middle of registers from several threads: each acknowledged one is found after the restart."""
    acknowledged: list[int] = []
    numbers = iter(range(len(NEW)))
    enough = threading.Event()

    def upload(client: NearDupClient) -> None:
        for number in numbers:
            try:
                client.register(f"new-{number}", NEW[number])
            except CallFailed:
                return
            acknowledged.append(number)
            if len(acknowledged) >= num_acknowledged:
                enough.set()

    with server_process(index.parent, "--embedding-only") as server, NearDupClient(server.address) as client:
        client.connection = type(client.connection)(address=server.address, timeout_s=3.0)
        threads = [threading.Thread(target=upload, args=(client,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        server.process.kill()
        for thread in threads:
            thread.join()

    with server_process(index.parent, "--embedding-only") as server, NearDupClient(server.address) as client:
        requests = (lookup_request(NEW[number], k=1) for number in acknowledged)
        found = [answer.response.matches[0].image_id for answer in client.lookup_many(requests)]
    assert found == [f"new-{number}" for number in acknowledged]


def test_a_drain_finishes_calls_in_progress(index: Path) -> None:
    """After SIGTERM what was begun is acknowledged, what failed was not begun, and the exit code is 0."""
    failed: list[str] = []
    acknowledged: list[int] = []
    numbers = iter(range(len(NEW)))

    def upload(client: NearDupClient) -> None:
        for number in numbers:
            try:
                client.register(f"new-{number}", NEW[number])
            except CallFailed as error:
                failed.append(error.code)
                return
            acknowledged.append(number)

    with server_process(index.parent, "--embedding-only") as server, NearDupClient(server.address) as client:
        client.connection = type(client.connection)(address=server.address, timeout_s=5.0)
        threads = [threading.Thread(target=upload, args=(client,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 50:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        for thread in threads:
            thread.join()

    assert set(failed) <= {"UNAVAILABLE", "CANCELLED"}
    with server_process(index.parent, "--embedding-only") as server, NearDupClient(server.address) as client:
        assert client.status().num_live == len(acknowledged)


def test_commands_without_a_server_say_so(tmp_path: Path) -> None:
    """Exit code 11 and the reason, no traceback."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"anything")

    result = neardup("lookup", str(photo), "--server", "127.0.0.1:1", "--timeout", "1")

    assert result.returncode == 11
    assert "127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_serving_openly_must_be_asked_for(tmp_path: Path) -> None:
    """Without certificates and tokens the server wants to hear --insecure."""
    result = neardup("serve", "--workspace", str(tmp_path))

    assert result.returncode == 2
    assert "--insecure" in result.stderr


def test_an_operator_s_mistake_has_an_exit_code_and_a_next_step(index: Path, tmp_path: Path) -> None:
    """No generation, a wrong address, a log of another embedder."""
    (tmp_path / "empty").mkdir()
    for options, code, text in (
        (["--workspace", str(tmp_path / "empty")], 2, "neardup index"),
        (["--workspace", str(index.parent), "--listen", "nonsense"], 2, "HOST:PORT"),
    ):
        result = neardup("serve", "--insecure", "--embedding-only", *options)
        assert (result.returncode, "Traceback" in result.stderr) == (code, False)
        assert text in result.stderr


def test_known_images_are_looked_up_and_removed_on_the_command_line(index: Path) -> None:
    """`lookup --id` and `remove`, as text and as JSON."""
    with server_process(index.parent, "--embedding-only") as server:
        with NearDupClient(server.address) as client:
            client.register("copy", near(EMBEDDINGS[3], 0.95))
        at = ("--server", server.address)
        text = neardup("lookup", "--id", "image-3", *at)
        found = json.loads(neardup("lookup", "--id", "image-3", "--json", *at).stdout)
        removed = [json.loads(neardup("remove", "copy", "--json", *at).stdout)["was_known"] for _ in range(2)]
        unknown = neardup("lookup", "--id", "copy", *at)

    assert text.stdout.splitlines()[0] == "image-3: a near-duplicate of image-3"
    assert found["matches"][0]["image_id"] == "copy"
    assert found["matches"][0]["source"] == "live"
    assert removed == [True, False]
    assert (unknown.returncode, "not known" in unknown.stderr) == (11, True)
