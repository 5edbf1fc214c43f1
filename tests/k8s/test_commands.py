"""Every command line in the manifests is one that the product takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from batch_jobs import build_index, submit
from batch_jobs.workspace import Workspace
from cli.main import neardup
from service.neardup_pb2 import DESCRIPTOR
from tests.k8s.kustomize import K8S, OVERLAYS, Object, containers, named, overlay

PACKAGES = "local:///opt/neardup/lib/python3.11/site-packages/"


def command_lines(name: str) -> Iterator[tuple[str, list[str]]]:
    """`(object/container, argv)` of every container of an overlay."""
    for one in overlay(name):
        for container in containers(one):
            argv = [*container["command"], *container.get("args", ())]
            yield f"{one['metadata']['name']}/{container['name']}", argv


def parse(arguments: list[str]) -> dict[str, object]:
    """Parse a command line of `neardup` by its own commands; raises click's UsageError."""
    command: click.Command = neardup
    context = click.Context(command, info_name="neardup", auto_envvar_prefix="NEARDUP")
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, arguments)
        assert found is not None
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    return command.make_context(command.name, list(arguments), parent=context).params


def placed(arguments: list[str], tmp_path: Path) -> list[str]:
    """The same command line with every file of the container as a file of this test."""
    made = []
    for argument in arguments:
        option, _, value = argument.partition("=")
        if not value.startswith("/"):
            made.append(argument)
            continue
        path = tmp_path / value.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if option in ("--tokens", "--certificate", "--key"):
            path.touch()
        made.append(f"{option}={path}")
    return made


@pytest.mark.parametrize("name", OVERLAYS)
def test_commands_of_neardup_parse(name: str, tmp_path: Path) -> None:
    """Each option exists and each value is in its range."""
    lines = [(where, argv) for where, argv in command_lines(name) if argv[0] == "neardup"]
    assert len(lines) == 3
    for where, argv in lines:
        assert parse(placed(argv[1:], tmp_path)), where


def test_commands_of_the_readme_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator is told to run in a pod exists, and takes from the environment what it needs."""
    (replica,) = containers(named(overlay("production"), "Deployment", "neardup-lookup"))
    for variable in replica["env"]:
        monkeypatch.setenv(variable["name"], "redis://neardup-redis:6379")
    lines = re.findall(r"-- neardup (.+)$", (K8S / "README.md").read_text(), re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert parse(line.split()), line


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_other_command_is_known(name: str) -> None:
    """A container runs `neardup`, the index step, Redis, or waits for the workspace's lock."""
    others = {where: argv for where, argv in command_lines(name) if argv[0] != "neardup"}
    assert others == {
        "neardup-index/wait": ["flock", "--timeout=36000", "/workspace/.lock", "true"],
        "neardup-index/build": ["python", "-m", "batch_jobs.build_index", "--workspace=/workspace", "--promote"],
        **({"neardup-redis/redis": ["redis-server", "/etc/neardup/redis/redis.conf"]} if name != "production" else {}),
    }


def run(main: object, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The message that a batch entry point ends with."""
    assert callable(main)
    monkeypatch.setattr(sys, "argv", ["job", *argv])
    with pytest.raises(SystemExit) as stopped:
        main()
    return str(stopped.value.code)


def test_the_index_step_takes_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as far as an empty workspace."""
    argv = dict(command_lines("production"))["neardup-index/build"][3:]
    said = run(build_index.main, placed(argv, tmp_path), monkeypatch)
    assert f"workspace {tmp_path / 'workspace'} holds no finished run" in said


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_pipeline_takes_its_arguments(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes as far as a source that is not there."""
    template = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
    said = run(submit.main, placed(template["arguments"], tmp_path), monkeypatch)
    assert f"source {tmp_path / 'images'}" in said


def test_the_pipeline_is_a_file_of_the_package() -> None:
    """The main file is where the image has it."""
    for name in OVERLAYS:
        template = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]["template"]
        place = template["mainApplicationFile"]
        assert place.startswith(PACKAGES)
        assert Path(submit.__file__).parents[1].joinpath(place.removeprefix(PACKAGES)).is_file()


@pytest.mark.skipif(shutil.which("flock") is None, reason="flock is not installed")
def test_the_job_waits_for_the_lock_that_the_pipeline_holds(tmp_path: Path) -> None:
    """`flock` on the workspace's lock file fails while the workspace is open."""

    def flock() -> int:
        return subprocess.run(["flock", "--timeout=0.1", tmp_path / ".lock", "true"], check=False).returncode

    assert flock() == 0
    with Workspace(tmp_path):
        assert flock() == 1


def probes(server: Object) -> list[Object]:
    return [server[f"{when}Probe"] for when in ("startup", "readiness", "liveness")]


@pytest.mark.parametrize("name", OVERLAYS)
def test_ports_and_probes_are_those_of_the_command(name: str, tmp_path: Path) -> None:
    """Probes ask where the server listens; by gRPC where it is not encrypted, for a service that health knows."""
    (server,) = containers(named(overlay(name), "Deployment", "neardup-lookup"))
    options = parse(placed(server["args"], tmp_path))
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert options["listen"] == f"0.0.0.0:{ports['grpc']}"
    assert options["metrics"] == f"0.0.0.0:{ports['metrics']}"
    asked = {"port": ports["grpc"], "service": DESCRIPTOR.services_by_name["NearDup"].full_name}
    for probe in probes(server):
        assert probe.get("grpc") == (asked if options["insecure"] else None)
        assert probe.get("tcpSocket") == (None if options["insecure"] else {"port": "grpc"})
