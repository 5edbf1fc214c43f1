"""Replicas and Redis as the manifests start them: the same command line, with files and ports of the test."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.client import Connection, NearDupClient
from tests.k8s.kustomize import K8S, containers, named, overlay
from tests.redis_servers import redis_server
from tests.service.corpora import add_current_generation, random_embeddings

TOKEN = "of-this-test"  # noqa: S105


@dataclass(frozen=True, slots=True)
class Serving:
    """A running server, where it listens, and the authority of its certificate if it has one."""

    process: subprocess.Popen[str]
    address: str
    metrics: str
    authority: Path | None

    def client(self) -> NearDupClient:
        return NearDupClient(Connection(address=self.address, authority=self.authority, token=TOKEN))

    def register(self, image_id: str) -> None:
        with self.client() as client:
            client.register(image_id, random_embeddings(1, seed=9)[0])

    def lookup(self) -> str:
        """The id of the best match for an image of the generation."""
        with self.client() as client:
            return str(client.lookup(random_embeddings(200)[0]).matches[0].image_id)

    def lookup_registered(self) -> str | None:
        """The id of the best match for what `register` registers."""
        with self.client() as client:
            matches = client.lookup(random_embeddings(1, seed=9)[0]).matches
        return str(matches[0].image_id) if matches else None


def free_ports(number: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def trial_redis(folder: Path) -> Iterator[str]:
    """The Redis of the overlay `dev`, with the user of the README; its URL as it stands in the Secret."""
    objects = overlay("dev")
    (container,) = containers(named(objects, "StatefulSet", "neardup-redis"))
    config = named(objects, "ConfigMap", "neardup-redis")["data"]["redis.conf"]
    mounted = "/etc/neardup/redis"
    assert container["command"] == ["redis-server", f"{mounted}/redis.conf"]
    folder.mkdir()
    password = "of-this-redis"  # noqa: S105
    (users,) = re.findall(r'users\.acl="(.+?)"$', (K8S / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    digest = hashlib.sha256(password.encode()).hexdigest()
    (folder / "users.acl").write_text(users.replace("$(sha256 $password)", digest) + "\n")
    config = config.replace("dir /data", f"dir {folder}").replace(f"{mounted}/", f"{folder}/")
    (folder / "redis.conf").write_text(config.replace("port 6379", "").replace("bind * -::*", ""))
    with redis_server(folder, conf=folder / "redis.conf") as server:
        yield f"redis://neardup:{password}@127.0.0.1:{server.port}"


@contextmanager
def serving(overlay_name: str, folder: Path, *, store: str, authority: Path | None = None) -> Iterator[Serving]:
    """Run a replica's container with `folder` as its root, without TensorFlow; wait until it serves."""
    (container,) = containers(named(overlay(overlay_name), "Deployment", "neardup-lookup"))
    grpc_port, metrics_port = free_ports(2)
    ports = {"50051": str(grpc_port), "9100": str(metrics_port)}
    argv = []
    for argument in container["args"]:
        option, _, value = argument.partition("=")
        host, _, port = value.rpartition(":")
        value = f"{host}:{ports[port]}" if port in ports else f"{folder}{value}" if value.startswith("/") else value
        argv.append(f"{option}={value}" if value else option)
    if not (folder / "workspace").exists():
        add_current_generation(folder / "workspace" / "index")
    tokens = folder / "etc/neardup/tokens/tokens"
    tokens.parent.mkdir(parents=True, exist_ok=True)
    tokens.write_text(f"{hashlib.sha256(TOKEN.encode()).hexdigest()} read,write test\n")
    environment = {**os.environ, **{variable["name"]: store for variable in container["env"]}}
    with subprocess.Popen(
        [sys.executable, "-m", "cli", *argv, "--embedding-only"], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if '"serving"' in line:
                    break
            else:
                raise AssertionError("the server did not start")
            yield Serving(process, f"localhost:{grpc_port}", f"localhost:{metrics_port}", authority)
        finally:
            process.kill()
            process.communicate()
