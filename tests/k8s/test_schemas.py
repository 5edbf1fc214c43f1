"""Every object of every overlay is one that the API server knows, field by field."""

from __future__ import annotations

from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from kubeflow_spark_api.models import SparkV1beta2ScheduledSparkApplication

from tests.k8s.kustomize import OVERLAYS, Object, named, overlay

OLDEST, NEWEST = "1.30", "1.37"
SPARK = "sparkoperator.k8s.io/v1beta2"
PROMETHEUS = "monitoring.coreos.com/v1"

STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h)$"}


def exactly(*required: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these properties and no others."""
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


METADATA = exactly("name", name={"type": "string"}, namespace={"type": "string"}, labels=STRINGS)
RULE = exactly(
    "alert",
    "expr",
    alert={"type": "string"},
    expr={"type": "string"},
    labels=STRINGS,
    annotations=STRINGS,
    **{"for": DURATION},
)
# Those fields of https://prometheus-operator.dev/docs/api-reference/api/ that k8s/ uses.
PROMETHEUS_SPECS = {
    "ServiceMonitor": exactly(
        "selector",
        "endpoints",
        selector=exactly("matchLabels", matchLabels=STRINGS),
        targetLabels={"type": "array", "items": {"type": "string"}},
        endpoints={"type": "array", "items": exactly("port", port={"type": "string"}, interval=DURATION)},
    ),
    "PrometheusRule": exactly(
        "groups",
        groups={
            "type": "array",
            "items": exactly("name", "rules", name={"type": "string"}, rules={"type": "array", "items": RULE}),
        },
    ),
}


def validate(one: Object, version: str) -> None:
    """Raises for an object that is none; custom resources do not depend on the version of Kubernetes."""
    if one["apiVersion"] == SPARK:
        validate_spark(one)
    elif one["apiVersion"] == PROMETHEUS:
        schema = exactly("spec", apiVersion={}, kind={}, metadata=METADATA, spec=PROMETHEUS_SPECS[one["kind"]])
        jsonschema.validate(one, schema)
    else:
        kubernetes_validate.validate(one, version, strict=True)


def validate_spark(one: Object) -> None:
    """Against the operator's own types; they drop what they do not know, so nothing may be lost on the way."""
    application = SparkV1beta2ScheduledSparkApplication.from_dict(one)
    assert application is not None
    assert application.to_dict() == one


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", OVERLAYS)
def test_objects_are_valid(name: str, version: str) -> None:
    """Known kinds, known fields only, of the right types, in the oldest and the newest Kubernetes we name."""
    for one in overlay(name):
        validate(one, version)


@pytest.mark.parametrize(
    ("kind", "name", "path", "value"),
    [
        ("Deployment", "neardup-lookup", ("spec", "replica"), 2),
        ("Deployment", "neardup-lookup", ("spec", "replicas"), "two"),
        ("CronJob", "neardup-index", ("spec", "timezone"), "Etc/UTC"),
        ("ScheduledSparkApplication", "neardup-clusters", ("spec", "template", "executor", "gpus"), 1),
        ("ScheduledSparkApplication", "neardup-clusters", ("spec", "template", "executor", "instances"), "4"),
        ("ScheduledSparkApplication", "neardup-clusters", ("spec", "timezone"), "UTC"),
        ("ServiceMonitor", "neardup", ("spec", "jobLabels"), "x"),
        ("PrometheusRule", "neardup", ("spec", "groups"), {}),
    ],
)
def test_a_wrong_field_is_found(kind: str, name: str, path: tuple[str, ...], value: Any) -> None:
    """A misspelt name or a value of another type fails, for each of the validators."""
    one = named(overlay("production"), kind, name)
    holder = one
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    with pytest.raises((ValueError, AssertionError, jsonschema.ValidationError)):
        validate(one, NEWEST)


def test_the_night_is_in_utc_and_runs_once() -> None:
    """Both schedules name UTC and forbid a second run beside the first."""
    for name in OVERLAYS:
        clusters = named(overlay(name), "ScheduledSparkApplication", "neardup-clusters")["spec"]
        index = named(overlay(name), "CronJob", "neardup-index")["spec"]
        assert (clusters["timeZone"], clusters["concurrencyPolicy"]) == ("UTC", "Forbid")
        assert (index["timeZone"], index["concurrencyPolicy"]) == ("Etc/UTC", "Forbid")
