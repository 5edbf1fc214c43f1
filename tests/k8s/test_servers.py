"""The replicas of the manifests run, by the command lines that stand there."""

from __future__ import annotations

import signal
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.k8s.kustomize import containers, named, overlay
from tests.k8s.servers import Serving, serving, trial_redis
from tests.redis_servers import wait_for
from tests.service.test_security import Authority


def probed(server: Serving, probe: dict[str, dict[str, str]]) -> int:
    """What the kubelet's gRPC probe would be told: no encryption, no token, the probe's own service."""
    with grpc.insecure_channel(server.address) as channel:
        request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
        status: int = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5).status
        return status


def test_a_replica_is_probed_used_and_drained(tmp_path: Path) -> None:
    """It is ready by its own probe, finds what another registered, and ends with 0 before Kubernetes would kill it."""
    lookup = named(overlay("dev"), "Deployment", "neardup-lookup")
    (container,) = containers(lookup)
    with (
        trial_redis(tmp_path / "redis") as store,
        serving("dev", tmp_path, store=store) as server,
        serving("dev", tmp_path, store=store) as other,
    ):
        assert probed(server, container["readinessProbe"]) == health_pb2.HealthCheckResponse.SERVING
        server.register("upload-1")
        assert server.lookup() == "image-0"
        wait_for(lambda: other.lookup_registered() == "upload-1")
        server.process.send_signal(signal.SIGTERM)
        grace_s = lookup["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert server.process.wait(timeout=grace_s) == 0


def test_the_replicas_of_production_speak_tls(tmp_path: Path) -> None:
    """With the certificate of the Secret, at the port that is probed; a caller needs a token as well."""
    tls = tmp_path / "etc/neardup/tls"
    tls.mkdir(parents=True)
    Authority(tls, "authority").issue("tls")
    with (
        trial_redis(tmp_path / "redis") as store,
        serving("production", tmp_path, store=store, authority=tls / "authority.pem") as server,
    ):
        assert server.lookup() == "image-0"
