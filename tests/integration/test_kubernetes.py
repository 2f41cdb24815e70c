"""The manifests, by the programs of Kubernetes' own world.

What needs Python packages alone runs always. `make kubernetes` builds kustomize and
kube-score, and runs the rest, which is marked `long`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.kubernetes import (
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
)

OVERLAYS: Final = [
    "base",
    "overlays/production",
    "overlays/staging",
    "strimzi",
    "strimzi-staging",
]
KAFKA_NAMESPACES: Final = {"strimzi": "kafka", "strimzi-staging": "kafka-staging"}


def built(folder: Path) -> list[Document]:
    """Return what kustomize makes of a folder."""
    return documents_of(run("kustomize", "build", str(folder)))


def with_component(name: str, directory: Path) -> list[Document]:
    """Return the base with a component."""
    place = directory / "kubernetes"
    shutil.copytree(KUSTOMIZE, place)
    (place / "with").mkdir()
    document = {"resources": ["../base"], "components": [f"../components/{name}"]}
    (place / "with" / "kustomization.yaml").write_text(yaml.safe_dump(document))
    return built(place / "with")


def test_kubernetes_knows_every_key_of_every_file() -> None:
    """The schemas of Kubernetes' API, strictly: no unknown key, every value of its type."""
    documents = list(documents_in(KUSTOMIZE))
    assert len([each for each in documents if is_of_kubernetes(each)]) == 9
    assert faults_in(documents) == []


def _misspell_a_probe(stateful_set: Document) -> None:
    container = pod_of(stateful_set)["containers"][0]
    container["livenessProb"] = container.pop("livenessProbe")


def _write_replicas_as_words(stateful_set: Document) -> None:
    stateful_set["spec"]["replicas"] = "three"


@pytest.mark.parametrize("spoil", [_misspell_a_probe, _write_replicas_as_words])
def test_a_mistake_is_found(spoil: Callable[[Document], None]) -> None:
    """A misspelled key is one, although Kubernetes' default is to ignore it."""
    stateful_set = deepcopy(one(documents_in(KUSTOMIZE / "base"), "StatefulSet"))
    spoil(stateful_set)
    assert len(faults_in([stateful_set])) == 1


@pytest.mark.long
@pytest.mark.parametrize("folder", OVERLAYS)
def test_kustomize_builds_what_kubernetes_takes(folder: str) -> None:
    """Each overlay is whole: names that resources give each other are there."""
    documents = built(KUSTOMIZE / folder)
    assert faults_in(documents) == []
    if folder in KAFKA_NAMESPACES:
        namespaces = {each["metadata"]["namespace"] for each in documents}
        assert namespaces == {KAFKA_NAMESPACES[folder]}
        assert len(documents) == len(list(documents_in(KUSTOMIZE / "strimzi")))
        return
    pod = pod_of(one(documents, "StatefulSet"))
    assert departures_from_restricted(pod) == []
    names = {(each["kind"], each["metadata"]["name"]) for each in documents}
    settings = next(each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each)
    assert ("ConfigMap", settings) in names
    assert settings != "rolloutd"  # a changed file replaces the pods
    assert ("ServiceAccount", pod["serviceAccountName"]) in names
    assert ("Service", one(documents, "StatefulSet")["spec"]["serviceName"]) in names


@pytest.mark.long
@pytest.mark.parametrize("overlay", ["production", "staging"])
def test_what_an_uninstallation_keeps_is_the_namespace(overlay: str) -> None:
    """The guide deletes by a label. All else of an overlay has it, and no claim is deleted."""
    label = ("app.kubernetes.io/part-of", "rolloutd")
    documents = built(KUSTOMIZE / "overlays" / overlay)
    kept = [each for each in documents if label not in each["metadata"]["labels"].items()]
    assert [each["kind"] for each in kept] == ["Namespace"]
    retention = one(documents, "StatefulSet")["spec"].get("persistentVolumeClaimRetentionPolicy")
    assert retention is None or retention["whenDeleted"] == "Retain"


@pytest.mark.long
def test_overlays_are_for_the_environment_that_they_name() -> None:
    """Staging gets its own settings, replicas, network policy and namespace."""
    documents = built(KUSTOMIZE / "overlays" / "staging")
    namespace = one(documents, "Namespace", "rolloutd-staging")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (settings,) = [each for each in documents if each["kind"] == "ConfigMap"]
    assert yaml.safe_load(settings["data"]["settings.yaml"])["environment"] == "staging"
    egress = one(documents, "NetworkPolicy")["spec"]["egress"]
    reached = [rule["to"][0]["namespaceSelector"]["matchLabels"] for rule in egress]
    names = ["kube-system", "kafka-staging", "redis-staging"]
    assert reached == [{"kubernetes.io/metadata.name": name} for name in names]
    assert {each["metadata"].get("namespace", "") for each in documents} == {"", "rolloutd-staging"}


@pytest.mark.long
@pytest.mark.parametrize("component", ["hpa", "keda"])
def test_an_autoscaler_owns_the_replicas(component: str, tmp_path: Path) -> None:
    """With a component the StatefulSet names no replicas, which would reset them at each apply."""
    documents = with_component(component, tmp_path)
    assert faults_in(documents) == []
    assert "replicas" not in one(documents, "StatefulSet")["spec"]


@pytest.mark.long
@pytest.mark.parametrize("overlay", ["production", "staging"])
def test_kube_score_has_nothing_to_say(overlay: str, tmp_path: Path) -> None:
    """Probes, limits, policies, budgets, identities: as good as it can ask for."""
    assert score(built(KUSTOMIZE / "overlays" / overlay), tmp_path) == ""


@pytest.mark.long
def test_kube_score_sees_a_missing_policy(tmp_path: Path) -> None:
    """It would say so."""
    documents = built(KUSTOMIZE / "overlays" / "production")
    rest = [each for each in documents if each["kind"] != "NetworkPolicy"]
    assert "NetworkPolicy" in score(rest, tmp_path)


@pytest.mark.long
def test_keda_knows_its_resources() -> None:
    """KEDA's own definitions take them, and would not take a misspelled key."""
    documents = list(documents_in(KUSTOMIZE / "components" / "keda"))
    for document in documents:
        assert custom_faults(document) == []
    spoiled = deepcopy(one(documents, "ScaledObject"))
    spoiled["spec"]["minReplicas"] = spoiled["spec"].pop("minReplicaCount")
    assert len(custom_faults(spoiled)) == 1
