"""Alerts and dashboard ask for what a server really exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import grpc
import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embed.errors import RejectReason
from service.metrics import Metrics
from service.neardup_pb2 import DESCRIPTOR
from service.served import Source
from tests.k8s.kustomize import K8S, named, overlay
from tests.k8s.servers import serving, trial_redis

FROM_PROMETHEUS = {"job", "namespace", "pod", "le"}
VALUES = {
    "method": {method.name for service in DESCRIPTOR.services_by_name.values() for method in service.methods},
    "code": {code.name for code in grpc.StatusCode},
    "stage": {"decode", "embed", "lookup", "change", "log"},
    "found_in": {*(source.value for source in Source), "none"},
    "reason": {str(reason) for reason in RejectReason},
    "job": {"neardup-lookup"},
}


def of_image_servers() -> Iterator[Any]:
    """What only a server that takes images shows, from the same class without the network."""
    metrics = Metrics()
    metrics.watch_queue("decode", ())
    metrics.watch_queue("embed", ())
    metrics.rejected_images.labels(RejectReason.EMPTY)
    yield from metrics.registry.collect()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Every series of a replica by name, with its labels, after one lookup and one register."""
    folder = tmp_path_factory.mktemp("monitored")
    with trial_redis(folder / "redis") as store, serving("dev", folder, store=store) as server:
        server.register("upload-1")
        server.lookup()
        with urlopen(f"http://{server.metrics}/metrics") as page:
            families = list(text_string_to_metric_families(page.read().decode()))
    series: dict[str, set[str]] = {"up": set()}
    for family in [*families, *of_image_servers()]:
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def alerts() -> Iterator[tuple[str, str]]:
    """`(alert, expression)` of every rule."""
    for group in named(overlay("production"), "PrometheusRule", "neardup")["spec"]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def panels() -> Iterator[tuple[str, str]]:
    """`(title, expression)` of every target, with Grafana's variables filled in."""
    for panel in json.loads((K8S / "base" / "dashboard.json").read_text())["panels"]:
        for target in panel["targets"]:
            expression = re.sub(r"\$__(rate_interval|range)", "5m", target["expr"])
            yield panel["title"], re.sub(r"\$\w+", "x", expression)


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every selector of series in a PromQL expression."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def grouping(expression: str) -> set[str]:
    """Every label that an aggregation keeps."""
    kept: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            kept.update(node.modifier.labels)
        return True

    promql_parser.walk(promql_parser.parse(expression), visit)
    return kept


def test_expressions_select_exported_series(exported: dict[str, set[str]]) -> None:
    """Every name is one of a server's, every label one that the series has, every value one that it can take."""
    for where, expression in [*alerts(), *panels()]:
        labels: set[str] = set()
        for selector in selectors(expression):
            assert selector.name in exported, where
            labels |= exported[selector.name]
            for matcher in selector.matchers.matchers:
                assert matcher.name in exported[selector.name] | FROM_PROMETHEUS, where
                values = set(re.findall(r"[\w-]+", matcher.value))
                assert values <= VALUES.get(matcher.name, set()) | {"x"}, (where, values)
        assert grouping(expression) <= labels | FROM_PROMETHEUS, where


def test_every_series_of_ours_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    """Nothing is exported that nobody can see."""
    ours = {name for name in exported if name.startswith("neardup_")}
    shown = {selector.name for _, expression in panels() for selector in selectors(expression)}
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in ours}
    unseen = {family.removesuffix("_total") for family in families} - {
        re.sub(r"_(bucket|total)$", "", str(name)) for name in shown
    }
    assert unseen == set()


def test_every_alert_is_explained() -> None:
    """The README says what to do about each."""
    text = (K8S / "README.md").read_text()
    assert [name for name, _ in alerts() if f"| `{name}` |" not in text] == []


def test_the_monitor_scrapes_the_metrics_of_the_replicas() -> None:
    """Its selector finds their service, and its port is one of it; the job is then the service's name."""
    objects = overlay("production")
    monitor = named(objects, "ServiceMonitor", "neardup")["spec"]
    found = [one for one in objects if one["kind"] == "Service"]
    (endpoint,) = monitor["endpoints"]
    for service in found:
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert {service["metadata"]["name"] for service in found} == VALUES["job"]
