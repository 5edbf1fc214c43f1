"""The overlays build, and our builder of them agrees with the real one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.k8s.kustomize import K8S, OVERLAYS, Object, build, overlay

COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())


def by_identity(objects: list[Object]) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_builder_agrees_with_kubectl(name: str) -> None:
    """Every object of an overlay is what `kubectl kustomize` makes of it."""
    done = subprocess.run(
        ["kubectl", "kustomize", K8S / "overlays" / name], capture_output=True, text=True, timeout=60, check=True
    )
    expected = by_identity(list(yaml.safe_load_all(done.stdout)))
    assert by_identity(overlay(name)) == expected


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_fits_the_base(name: str, tmp_path: Path) -> None:
    """Each can be taken by an overlay alone, and changes something."""
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump({"resources": [str(K8S / "base")], "components": [str(K8S / "components" / name)]})
    )
    assert build(tmp_path).objects != build(K8S / "base").objects


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    """What the builder cannot do is an error, not left out."""
    (tmp_path / "kustomization.yaml").write_text("namePrefix: my-\n")
    with pytest.raises(ValueError, match="namePrefix"):
        build(tmp_path)


def test_every_file_is_used() -> None:
    """No manifest lies beside its kustomization without being named in it."""
    for kustomization in K8S.rglob("kustomization.yaml"):
        text = kustomization.read_text()
        beside = [path for path in kustomization.parent.iterdir() if path.is_file() and path != kustomization]
        assert [path.name for path in beside if path.name not in text] == []
