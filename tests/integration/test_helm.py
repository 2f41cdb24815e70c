"""The chart of ops/helm, by Helm itself. `make kubernetes` builds it and runs this."""

from __future__ import annotations

import json
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.kubernetes import (
    CHART,
    KUSTOMIZE,
    Document,
    custom_faults,
    departures_from_restricted,
    documents_in,
    documents_of,
    faults_in,
    is_of_kubernetes,
    one,
    pod_of,
    run,
    score,
    tools,
)

pytestmark = pytest.mark.long

#: A value for each branch of the templates.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "as it is": {},
    "hpa": {"autoscaling": {"kind": "hpa"}},
    "keda": {"autoscaling": {"kind": "keda"}},
    "no policy": {"networkPolicy": {"enabled": False}},
    "all": {
        "image": {
            "repository": "registry.example.com/rolloutd",
            "digest": f"sha256:{'0' * 64}",
            "pullSecrets": ["registry"],
        },
        "secrets": {"unleash": "unleash-token"},
        "storage": {"size": "2Gi", "className": "fast"},
        "settings": {"planes": {"unleash": {"url": "http://unleash.unleash.svc:4242"}}},
        "networkPolicy": {
            "egress": [{"to": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 4242}]}]
        },
    },
}


def rendered(
    values: dict[str, Any], directory: Path, release: str = "rolloutd", namespace: str = "rolloutd"
) -> list[Document]:
    """Return what the chart makes of values."""
    file = directory / "values.json"
    file.write_text(json.dumps(values))
    where = ("--namespace", namespace, "--values", str(file))
    return documents_of(run("helm", "template", release, str(CHART), *where))


def test_helm_has_nothing_to_say() -> None:
    """`helm lint --strict` warns of nothing."""
    answer = run("helm", "lint", "--strict", str(CHART))
    assert "[WARNING]" not in answer
    assert "[ERROR]" not in answer


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_branch_gives_what_kubernetes_takes(variant: str, tmp_path: Path) -> None:
    """With its own schemas, strictly; KEDA's with KEDA's; pods stay restricted."""
    documents = rendered(VARIANTS[variant], tmp_path)
    assert faults_in(documents) == []
    for document in documents:
        assert is_of_kubernetes(document) or custom_faults(document) == []
    assert departures_from_restricted(pod_of(one(documents, "StatefulSet"))) == []
    kinds = {document["kind"] for document in documents}
    assert ("NetworkPolicy" in kinds) == (variant != "no policy")
    assert ("HorizontalPodAutoscaler" in kinds) == (variant == "hpa")
    assert ("ScaledObject" in kinds) == (variant == "keda")
    has_replicas = "replicas" in one(documents, "StatefulSet")["spec"]
    assert has_replicas == (variant not in ("hpa", "keda"))


def test_values_reach_the_pod(tmp_path: Path) -> None:
    """A digest, a further secret, a class of storage, and rules for the network."""
    documents = rendered(VARIANTS["all"], tmp_path)
    pod = pod_of(one(documents, "StatefulSet"))
    (container,) = pod["containers"]
    assert container["image"] == f"registry.example.com/rolloutd@sha256:{'0' * 64}"
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert mounts >= {f"/run/secrets/rolloutd/{name}" for name in ("kafka", "redis", "unleash")}
    (claim,) = one(documents, "StatefulSet")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert one(documents, "NetworkPolicy")["spec"]["egress"][-1]["ports"][0]["port"] == 4242


def test_two_releases_in_a_namespace_do_not_meet(tmp_path: Path) -> None:
    """Every name and every selector is the release's own."""
    first, second = (rendered({}, tmp_path, release) for release in ("one", "two"))
    names = [
        {(each["kind"], each["metadata"]["name"]) for each in one_} for one_ in (first, second)
    ]
    assert not names[0] & names[1]
    labels = one(first, "StatefulSet", "one")["spec"]["template"]["metadata"]["labels"]
    selector = one(second, "Service", "two")["spec"]["selector"]
    assert not selector.items() <= labels.items()


def test_any_release_answers_to_its_own_names(tmp_path: Path) -> None:
    """In any namespace, with the names that a user adds, each once."""
    values = {"settings": {"http": {"allowed_hosts": ["rollouts.example.org", "canary"]}}}
    config = one(rendered(values, tmp_path, "canary", "shop"), "ConfigMap", "canary")
    settings = yaml.safe_load(config["data"]["settings.yaml"])
    assert settings["http"]["allowed_hosts"] == [
        *("canary", "canary.shop", "*.svc", "*.svc.cluster.local", "rollouts.example.org"),
    ]
    assert settings["http"]["port"] == 8080


def test_changed_settings_replace_the_pods(tmp_path: Path) -> None:
    """The template of the pods changes with them, and with nothing else that is the same."""
    templates = [
        one(rendered(values, tmp_path), "StatefulSet")["spec"]["template"]
        for values in ({}, {"replicas": 5}, {"settings": {"log": {"level": "debug"}}})
    ]
    assert templates[0] == templates[1]
    assert templates[0] != templates[2]


@pytest.mark.parametrize(
    "values",
    [
        {"autoscaling": {"king": "hpa"}},
        {"autoscaling": {"kind": "vpa"}},
        {"replicas": 0},
        {"image": {"digest": "latest"}},
        {"settings": {"http": {"port": "http"}}},
        {"settings": {"http": {"allowed_hosts": "rollouts.example.org"}}},
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    """By the chart's schema, before anything is applied."""
    assert "values don't meet the specifications" in refusal_of(values, tmp_path)


def test_bounds_that_leave_no_replicas_are_refused(tmp_path: Path) -> None:
    """A schema cannot compare two values, so a template does."""
    said = refusal_of({"autoscaling": {"kind": "hpa", "minReplicas": 9}}, tmp_path)
    assert "minReplicas is 9, maxReplicas 8: raise maxReplicas" in said


def refusal_of(values: dict[str, Any], tmp_path: Path) -> str:
    """Return what Helm says of values that it refuses."""
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    done = subprocess.run(
        [str(tools() / "bin" / "helm"), "template", "r", str(CHART), "--values", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr


def _without_names(document: Document) -> Document:
    """Return a resource without what the two ways of installing name differently."""
    rest = deepcopy(document)
    rest["metadata"] = {"name": rest["metadata"]["name"]}
    text = yaml.safe_dump(rest)
    for label in ("instance", "part-of", "managed-by", "version"):
        text = "\n".join(
            line for line in text.split("\n") if f"app.kubernetes.io/{label}:" not in line
        )
    rest = yaml.safe_load(text)
    if rest["kind"] == "StatefulSet":
        rest["spec"]["template"]["metadata"].pop("annotations", None)
    if rest["kind"] == "ConfigMap":
        rest["data"] = yaml.safe_load(rest["data"]["settings.yaml"])
    return dict(rest)


def test_it_is_the_base_of_kustomize(tmp_path: Path) -> None:
    """Both ways of installing run the same: one source of truth."""
    chart = {
        (each["kind"], each["metadata"]["name"]): _without_names(each)
        for each in rendered({}, tmp_path)
    }
    config = chart.pop(("ConfigMap", "rolloutd"))
    base = {
        (each["kind"], each["metadata"]["name"]): _without_names(each)
        for each in documents_in(KUSTOMIZE / "base")
    }
    assert chart == base
    settings = yaml.safe_load((KUSTOMIZE / "base" / "settings.yaml").read_text(encoding="utf-8"))
    assert config["data"] == settings


@pytest.mark.parametrize(("variant", "component"), [("hpa", "hpa"), ("keda", "keda")])
def test_its_autoscalers_are_the_components(variant: str, component: str, tmp_path: Path) -> None:
    """With the same bounds and the same topics."""
    chart = rendered(VARIANTS[variant], tmp_path)
    for document in documents_in(KUSTOMIZE / "components" / component):
        found = one(chart, document["kind"])
        assert _without_names(found) == _without_names(document)


def test_kube_score_has_nothing_to_say(tmp_path: Path) -> None:
    """As of the overlays."""
    assert score(rendered({"autoscaling": {"kind": "hpa"}}, tmp_path), tmp_path) == ""
