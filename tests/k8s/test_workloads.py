"""What the objects of an overlay promise each other, and an operator."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_jobs.build_index import index_folder
from batch_jobs.gpus import DISCOVERY_SCRIPT, HELD_GPUS
from batch_jobs.memory import executor_settings
from service.settings import ServeSettings
from tests.k8s.kustomize import K8S, OVERLAYS, Object, containers, named, overlay, pod_spec

REPOSITORY = Path(__file__).parents[2]
LOOKUP = ("Deployment", "neardup-lookup")
REDIS = ("StatefulSet", "neardup-redis")
WITH_REDIS = ("dev", "staging")
MADE_BY_THE_OPERATOR = {
    "PersistentVolumeClaim": {"neardup-images"},
    "Secret": {"neardup-tokens", "neardup-store", "neardup-redis", "neardup-tls"},
}


def pods(objects: list[Object]) -> Iterator[tuple[Object, list[Object], Object]]:
    """The pod's security context, its containers, and the object they run for, Spark's included."""
    for one in objects:
        spec = pod_spec(one)
        if spec is not None:
            yield spec["securityContext"], list(containers(one)), one
        if one["kind"] == "ScheduledSparkApplication":
            for role in ("driver", "executor"):
                part = one["spec"]["template"][role]
                yield part["podSecurityContext"], [part], one


def volumes(one: Object) -> list[Object]:
    spec = pod_spec(one) or one["spec"].get("template", {})
    found: list[Object] = spec.get("volumes", [])
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_restricted(name: str) -> None:
    """The profile `restricted` of the Pod Security Standards, and a root file system that cannot be written."""
    for pod, restricted, one in pods(overlay(name)):
        assert pod["runAsNonRoot"] is True
        assert pod["runAsUser"] == 10001, one["metadata"]["name"]
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in restricted:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]  # noqa: S108


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_says_what_it_needs(name: str) -> None:
    """Requests for the scheduler and the autoscaler, and a limit of memory."""
    for one in overlay(name):
        for container in containers(one):
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_sets_no_options(name: str) -> None:
    """The variables that a Service named neardup-lookup would give a pod are options of `neardup lookup`."""
    for one in overlay(name):
        spec = pod_spec(one)
        assert spec is None or spec["enableServiceLinks"] is False


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_replica_has_time_to_drain(name: str) -> None:
    """Kubernetes waits longer than the pause before SIGTERM, the announcement and the drain together."""
    server = named(overlay(name), *LOOKUP)
    (container,) = containers(server)
    (drain_s,) = [float(argument.split("=")[1]) for argument in container["args"] if "--drain-seconds" in argument]
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    announced_s = ServeSettings.__dataclass_fields__["announce_drain_s"].default
    assert server["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > pause_s + announced_s + drain_s


@pytest.mark.parametrize("name", OVERLAYS)
def test_replicas_keep_nothing(name: str) -> None:
    """They mount the workspace read-only; uploads go to the store of the Secret, and their only disk is scratch."""
    lookup = named(overlay(name), *LOOKUP)
    (container,) = containers(lookup)
    mounts = {one["name"]: one for one in container["volumeMounts"]}
    assert [one for one, mount in mounts.items() if not mount.get("readOnly")] == ["tmp"]
    stores = {one["name"]: one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    assert stores["NEARDUP_SERVE_STORE"] == {"name": "neardup-store", "key": "url"}
    assert [argument for argument in container["args"] if argument.startswith("--log=")] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_trials_have_a_redis_of_their_own(name: str) -> None:
    """One server with a volume that outlives it; production's Redis is the operator's."""
    found = [one for one in overlay(name) if (one["kind"], one["metadata"]["name"]) == REDIS]
    assert len(found) == (name in WITH_REDIS)
    for one in found:
        assert one["spec"]["replicas"] == 1
        (claim,) = one["spec"]["volumeClaimTemplates"]
        (container,) = containers(one)
        assert "/data" in [m["mountPath"] for m in container["volumeMounts"] if m["name"] == claim["metadata"]["name"]]


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_referenced_exists(name: str) -> None:
    """Claims, accounts and secrets are in the overlay, or in the list of those that the operator makes."""
    objects = overlay(name)
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    accounts = {one["metadata"]["name"] for one in objects if one["kind"] == "ServiceAccount"}
    for one in objects:
        for volume in volumes(one) if one["kind"] not in ("Namespace", "ConfigMap") and "spec" in one else ():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in {None} | claims | MADE_BY_THE_OPERATOR["PersistentVolumeClaim"]
            projected = [
                one["secret"]["name"] for one in volume.get("projected", {}).get("sources", ()) if "secret" in one
            ]
            assert {volume.get("secret", {}).get("secretName"), *projected} <= {None} | MADE_BY_THE_OPERATOR["Secret"]
        spec = pod_spec(one)
        assert spec is None or spec["serviceAccountName"] in accounts
    spark = named(objects, "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
    assert {spark["driver"]["serviceAccount"], spark["executor"]["serviceAccount"]} <= accounts


def test_no_secret_is_in_the_repository() -> None:
    """Secrets are named, never written."""
    for name in OVERLAYS:
        assert [one for one in overlay(name) if one["kind"] == "Secret"] == []


def test_the_readme_names_what_the_operator_makes() -> None:
    """Every claim and secret that must exist before is in the instructions."""
    text = (K8S / "README.md").read_text()
    assert [one for names in MADE_BY_THE_OPERATOR.values() for one in names if one not in text] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_selectors_find_their_pods(name: str) -> None:
    """Services, budget, spread, autoscaler and network policies select labels that pods carry."""
    objects = overlay(name)
    spark = named(objects, "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
    lookup = named(objects, *LOOKUP)["spec"]["template"]["metadata"]["labels"].items()
    for server in (LOOKUP, REDIS) if name in WITH_REDIS else (LOOKUP,):
        labels = named(objects, *server)["spec"]["template"]["metadata"]["labels"].items()
        assert named(objects, "Service", server[1])["spec"]["selector"].items() <= labels
        assert named(objects, *server)["spec"]["selector"]["matchLabels"].items() <= labels
    for policy in ("neardup-callers", "neardup-store"):
        assert named(objects, "NetworkPolicy", policy)["spec"]["podSelector"]["matchLabels"].items() <= lookup
    if name in WITH_REDIS:
        redis = named(objects, *REDIS)["spec"]["template"]["metadata"]["labels"].items()
        policy = named(objects, "NetworkPolicy", "neardup-redis")["spec"]
        assert policy["podSelector"]["matchLabels"].items() <= redis
        assert policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].items() <= lookup
    budget = named(objects, "PodDisruptionBudget", "neardup-lookup")["spec"]["selector"]["matchLabels"]
    assert budget.items() <= lookup
    for spread in named(objects, *LOOKUP)["spec"]["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= lookup
    nightly = named(objects, "NetworkPolicy", "neardup-nightly")["spec"]["podSelector"]["matchLabels"]
    assert nightly.items() <= spark["driver"]["labels"].items()
    assert nightly.items() <= spark["executor"]["labels"].items()


@pytest.mark.parametrize("name", ["staging", "production"])
def test_the_autoscaler_owns_the_replicas(name: str) -> None:
    """The Deployment names no number, so that applying it again changes none; the budget leaves one running."""
    objects = overlay(name)
    scaled = named(objects, "HorizontalPodAutoscaler", "neardup-lookup")["spec"]
    target = named(objects, scaled["scaleTargetRef"]["kind"], scaled["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"]
    budget = named(objects, "PodDisruptionBudget", "neardup-lookup")["spec"]
    assert budget["maxUnavailable"] < scaled["minReplicas"]


@pytest.mark.parametrize("name", OVERLAYS)
def test_images_are_named_by_the_overlay(name: str) -> None:
    """No image is left without a tag or with `latest`."""
    objects = overlay(name)
    images = [container["image"] for one in objects for container in containers(one)]
    images.append(named(objects, "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]["image"])
    assert [image for image in images if not re.fullmatch(r"[a-z./-]+:(?!latest)[a-z0-9.]+", image)] == []


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-gpu.lock"])
def test_spark_is_the_locked_one(lock: str) -> None:
    """The manifest names the version of pyspark that the image holds."""
    (locked,) = re.findall(r"^pyspark==(\S+)", (REPOSITORY / lock).read_text(), re.MULTILINE)
    for name in OVERLAYS:
        template = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
        assert template["sparkVersion"] == locked


def test_the_gpu_variant_gives_each_executor_a_gpu() -> None:
    """Production's executors ask Spark for one, so that it is assigned to tasks; the other overlays ask for none."""
    for name in OVERLAYS:
        template = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
        settings = template.get("sparkConf", {})
        assert settings.get(HELD_GPUS) == ("1" if name == "production" else None)
        script = settings.get("spark.executor.resource.gpu.discoveryScript")
        installed = template["mainApplicationFile"].removeprefix("local://").removesuffix("nightly.py")
        assert script == (f"{installed}{DISCOVERY_SCRIPT.name}" if name == "production" else None)
        assert "gpu" not in {**template["driver"], **template["executor"]}
        assert ("--dtype=bfloat16" in template["arguments"]) == (name == "production")
        assert ("spark-gpu" in template["image"]) == (name == "production")


def test_spark_executors_have_the_memory_of_their_tasks() -> None:
    """What is asked for covers the largest batches of every step, on each of the executor's cores."""
    for name in OVERLAYS:
        executor = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]["executor"]
        needed = executor_settings(num_cores=executor["cores"])
        for field, setting in (
            ("memory", "spark.executor.memory"),
            ("memoryOverhead", "spark.executor.memoryOverhead"),
        ):
            assert mebibytes(executor[field]) >= mebibytes(needed[setting]), f"{name}: {field}"


def mebibytes(size: str) -> int:
    return int(size[:-1]) * {"m": 1, "g": 1024}[size[-1]]


def test_servers_and_jobs_share_one_workspace() -> None:
    """All mount the same claim at the same place, where the index is."""
    for one in overlay("production"):
        for container in containers(one):
            (place,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "workspace"]
            assert index_folder(Path(place)) == Path("/workspace/index")
