"""Builds an overlay without kustomize, which is on no package index: the few fields that `k8s/` uses, and no others.

Where `kubectl` is installed a test holds it against `kubectl kustomize`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonpatch
import yaml

K8S: Final = Path(__file__).parents[2] / "k8s"
OVERLAYS: Final = ("dev", "staging", "production")
_FIELDS: Final = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"} | {
    "generatorOptions",
    "configMapGenerator",
    "configurations",
}

Object = dict[str, Any]


@dataclass(slots=True)
class Build:
    """The objects so far, and where kinds of their own keep images: `(kind, path)`."""

    objects: list[Object] = field(default_factory=list)
    image_fields: list[tuple[str, str]] = field(default_factory=list)


def overlay(name: str) -> list[Object]:
    """All objects of one overlay, the caller's to change."""
    objects: list[Object] = json.loads(_overlay(name))
    return objects


@cache
def _overlay(name: str) -> str:
    return json.dumps(build(K8S / "overlays" / name).objects)


def build(folder: Path, into: Build | None = None) -> Build:
    """What `kustomize build` makes of a folder; a component is built `into` the objects that it changes."""
    made = into or Build()
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _FIELDS
    if unknown:
        raise ValueError(f"{folder}/kustomization.yaml has fields that this builder does not know: {sorted(unknown)}")
    for name in kustomization.get("configurations", ()):
        fields = yaml.safe_load((folder / name).read_text())["images"]
        made.image_fields += [(entry["kind"], entry["path"]) for entry in fields]
    for name in kustomization.get("resources", ()):
        _add_resource(made, folder / name)
    for name in kustomization.get("components", ()):
        build(folder / name, made)
    for generator in kustomization.get("configMapGenerator", ()):
        made.objects.append(_config_map(folder, generator, kustomization["generatorOptions"]))
    for patch in kustomization.get("patches", ()):
        _apply(made, folder, patch)
    if "namespace" in kustomization:
        for one in made.objects:
            _set_namespace(one, kustomization["namespace"])
    for image in kustomization.get("images", ()):
        _set_image(made, image)
    return made


def _add_resource(made: Build, path: Path) -> None:
    if path.is_dir():
        below = build(path)
        made.objects += below.objects
        made.image_fields += below.image_fields
        return
    # Through JSON, so that what YAML aliases share is not shared any more.
    made.objects += [json.loads(json.dumps(one)) for one in yaml.safe_load_all(path.read_text())]


def _config_map(folder: Path, generator: Object, options: Object) -> Object:
    assert options["disableNameSuffixHash"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"], "labels": options["labels"]},
        "data": {name: (folder / name).read_text() for name in generator["files"]},
    }


def _apply(made: Build, folder: Path, patch: Object) -> None:
    if "path" not in patch:
        doomed = yaml.safe_load(patch["patch"])
        assert doomed.pop("$patch") == "delete"
        kept = [one for one in made.objects if _identity(one) != _identity(doomed)]
        assert len(kept) == len(made.objects) - 1, doomed
        made.objects = kept
        return
    operations = jsonpatch.JsonPatch(yaml.safe_load((folder / patch["path"]).read_text()))
    target = (patch["target"]["kind"], patch["target"]["name"])
    places = [place for place, one in enumerate(made.objects) if _identity(one)[1:] == target]
    assert len(places) == 1, target
    made.objects[places[0]] = operations.apply(made.objects[places[0]])


def _identity(one: Object) -> tuple[str, str, str]:
    return one["apiVersion"], one["kind"], one["metadata"]["name"]


def _set_namespace(one: Object, namespace: str) -> None:
    if one["kind"] == "Namespace":
        one["metadata"]["name"] = namespace
        return
    one["metadata"]["namespace"] = namespace
    for subject in one.get("subjects", ()):
        subject["namespace"] = namespace


def _set_image(made: Build, image: Object) -> None:
    for one in made.objects:
        holders = [(container, "image") for container in containers(one)]
        for kind, path in made.image_fields:
            if one["kind"] == kind:
                *parents, last = path.split("/")
                holder = one
                for parent in parents:
                    holder = holder[parent]
                holders.append((holder, last))
        for holder, key in holders:
            if holder[key] == image["name"]:
                holder[key] = f"{image.get('newName', image['name'])}:{image['newTag']}"


def pod_spec(one: Object) -> Object | None:
    """The pod spec of a workload that Kubernetes itself knows."""
    if one["kind"] in ("Deployment", "StatefulSet"):
        return one["spec"]["template"]["spec"]  # type: ignore[no-any-return]
    if one["kind"] == "CronJob":
        return one["spec"]["jobTemplate"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]
    return None


def containers(one: Object) -> Iterable[Object]:
    """All containers of a workload, those that run first at the beginning."""
    spec = pod_spec(one) or {}
    return [*spec.get("initContainers", ()), *spec.get("containers", ())]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name."""
    (found,) = [one for one in objects if _identity(one)[1:] == (kind, name)]
    return found
