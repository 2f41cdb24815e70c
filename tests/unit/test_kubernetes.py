"""The manifests of ops/kubernetes agree with the code: settings, topics, rights and ports."""

from __future__ import annotations

import re
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
import yaml

from controller.adapters.kafka.topics import topic_config
from controller.settings import Settings, TopicNames, load_settings
from controller.web.app import is_ours
from schemas.topics import TOPIC_POLICIES
from tests.kubernetes import (
    CHART,
    KUSTOMIZE,
    ROOT,
    Document,
    departures_from_restricted,
    documented_rights,
    documents_in,
    one,
    pod_of,
)

BASE: Final = list(documents_in(KUSTOMIZE / "base"))
STRIMZI: Final = list(documents_in(KUSTOMIZE / "strimzi"))
#: Each settings file, and the namespace that it is for.
FILES: Final = {
    KUSTOMIZE / "base" / "settings.yaml": "rolloutd",
    KUSTOMIZE / "overlays" / "staging" / "settings.yaml": "rolloutd-staging",
}
SECRETS: Final = "/run/secrets/rolloutd"
#: Producers give these their time, so the broker refuses what is too far ahead.
TIMED_BY_PRODUCERS: Final = {"evaluations", "outcomes", "commands"}


def settings_of(path: Path, tmp_path: Path) -> Settings:
    """Return what the daemon reads from a settings file; the secrets are files here, too."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for section in (document["kafka"]["security"], document["redis"]):
        section["password_file"] = section["password_file"].replace(SECRETS, str(tmp_path))
        secret = Path(section["password_file"])
        secret.parent.mkdir(exist_ok=True)
        secret.write_text("a password")
    given = tmp_path / "settings.yaml"
    given.write_text(yaml.safe_dump(document))
    return load_settings(given, {})


def container_of(documents: list[Document]) -> Document:
    """Return the daemon's container."""
    (container,) = pod_of(one(documents, "StatefulSet"))["containers"]
    found: Document = container
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.parent.name)
def test_the_settings_are_settings_of_the_daemon(path: Path, tmp_path: Path) -> None:
    """It starts with them, and no connection is open to whoever reaches it."""
    settings = settings_of(path, tmp_path)
    assert settings.kafka.create_topics is False
    assert not list(settings.kafka.insecure_connections("kafka"))
    assert not list(settings.redis.insecure_connections("redis"))
    assert settings.http.why_not_shown is not None
    namespace = FILES[path]
    names = frozenset(settings.http.allowed_hosts)
    for name in ("rolloutd", f"rolloutd.{namespace}", f"rolloutd.{namespace}.svc"):
        assert is_ours(name, names)
        assert is_ours(f"{name}:8080", names)
    assert is_ours(f"rolloutd.{namespace}.svc.cluster.local", names)
    assert not is_ours("example.org", names)


def test_staging_differs_from_production_in_its_name_and_addresses_alone(tmp_path: Path) -> None:
    """And reaches nothing of production."""
    production, staging = [
        settings_of(path, tmp_path).model_dump(exclude_defaults=True) for path in FILES
    ]
    assert staging["environment"] == "staging"
    for section, key in (("kafka", "bootstrap_servers"), ("redis", "url")):
        there, here = production[section].pop(key), staging[section].pop(key)
        assert there != here
        assert here == there.replace(f".{section}.", f".{section}-staging.")
    del staging["environment"], staging["http"]["allowed_hosts"]
    del production["http"]["allowed_hosts"]
    assert staging == production


def test_ports_of_pods_services_and_policies_are_the_daemons(tmp_path: Path) -> None:
    """Probes use the second port, which flag traffic cannot starve."""
    settings = settings_of(next(iter(FILES)), tmp_path)
    container = container_of(BASE)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings.http.port, "ops": settings.http.ops_port}
    paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for probe, path in paths.items():
        assert container[probe]["httpGet"] == {"path": path, "port": "ops"}
    for name, port in (("rolloutd", "http"), ("rolloutd-pods", "ops")):
        service = one(BASE, "Service", name)
        assert service["spec"]["ports"] == [{"name": port, "port": ports[port], "targetPort": port}]
    ingress = one(BASE, "NetworkPolicy")["spec"]["ingress"]
    assert [rule["ports"][0]["port"] for rule in ingress] == ["http", "ops"]


def test_it_may_reach_kafka_redis_and_names_alone(tmp_path: Path) -> None:
    """The policy's ports and namespaces are those of the settings' addresses."""
    settings = settings_of(next(iter(FILES)), tmp_path)
    kafka, redis = settings.kafka.bootstrap_servers, urlsplit(settings.redis.url)
    addresses = {(kafka.split(".")[1], int(kafka.rpartition(":")[2]))}
    assert redis.hostname is not None
    addresses.add((redis.hostname.split(".")[1], redis.port or 0))
    allowed = {
        (peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in one(BASE, "NetworkPolicy")["spec"]["egress"]
        for peer in rule["to"]
        for port in rule["ports"]
    }
    assert allowed - {("kube-system", 53)} == addresses


def test_files_that_the_settings_name_are_mounted(tmp_path: Path) -> None:
    """Settings, secrets and the last known state; nothing else is writable but memory."""
    container, pod = container_of(BASE), pod_of(one(BASE, "StatefulSet"))
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    document = yaml.safe_load(next(iter(FILES)).read_text(encoding="utf-8"))
    secrets = {each["name"]: each["secret"] for each in pod["volumes"] if "secret" in each}
    for section in (document["kafka"]["security"], document["redis"]):
        for file in (section["password_file"], section["ca_file"]):
            assert secrets[mounts[str(Path(file).parent)]["name"]]["defaultMode"] == 0o440
    assert {each["secretName"] for each in secrets.values()} == {"rolloutd-kafka", "rolloutd-redis"}
    environ = {each["name"]: each.get("value") for each in container["env"]}
    assert environ.pop("ROLLOUTD_CONFIG") == "/etc/rolloutd/settings.yaml"
    assert environ == {"ROLLOUTD_KAFKA__STATIC_MEMBER_ID": None}  # the pod's name
    claim = one(BASE, "StatefulSet")["spec"]["volumeClaimTemplates"][0]["metadata"]["name"]
    assert mounts[document["last_known"]["directory"]]["name"] == claim
    writable = {path for path, each in mounts.items() if not each.get("readOnly")}
    assert writable == {"/tmp", document["last_known"]["directory"]}


def test_kubernetes_adds_no_variables_that_look_like_settings() -> None:
    """For a Service named rolloutd it would set ROLLOUTD_PORT, and the daemon would not start."""
    assert pod_of(one(BASE, "StatefulSet"))["enableServiceLinks"] is False
    with pytest.raises(Exception, match="no such setting"):
        load_settings(None, {"ROLLOUTD_PORT": "tcp://10.0.0.1:8080"})


def test_pods_are_restricted() -> None:
    """By the Pod Security Standard, and beyond it."""
    assert departures_from_restricted(pod_of(one(BASE, "StatefulSet"))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("securityContext", "runAsNonRoot"), False),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}),
        (("hostNetwork",), True),
        (("automountServiceAccountToken",), True),
        (("containers", 0, "securityContext", "allowPrivilegeEscalation"), True),
        (("containers", 0, "securityContext", "capabilities"), {"add": ["NET_ADMIN"]}),
        (("containers", 0, "securityContext", "readOnlyRootFilesystem"), False),
        (("volumes",), [{"name": "host", "hostPath": {"path": "/"}}]),
    ],
)
def test_a_pod_that_may_more_is_found(path: tuple[Any, ...], value: Any) -> None:
    """Each departure is seen."""
    pod = deepcopy(pod_of(one(BASE, "StatefulSet")))
    place: Any = pod
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert len(departures_from_restricted(pod)) == 1


def test_it_has_time_to_stop(tmp_path: Path) -> None:
    """Kubernetes kills a pod only after the daemon's own deadlines are over."""
    pod = pod_of(one(BASE, "StatefulSet"))
    shutdown = settings_of(next(iter(FILES)), tmp_path).shutdown
    waits = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = waits + shutdown.drain_seconds + shutdown.close_seconds
    assert pod["terminationGracePeriodSeconds"] >= 2 * needed


def test_users_and_version_are_the_images() -> None:
    """The image's user, and the version that this checkout builds."""
    assert "USER 10001:10001" in (ROOT / "ops" / "Dockerfile").read_text(encoding="utf-8")
    stateful_set = one(BASE, "StatefulSet")
    context = pod_of(stateful_set)["securityContext"]
    assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {10001}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert stateful_set["metadata"]["labels"]["app.kubernetes.io/version"] == project["version"]
    assert container_of(BASE)["image"] == f"rolloutd:{project['version']}"
    for overlay in ("production", "staging"):
        path = KUSTOMIZE / "overlays" / overlay / "kustomization.yaml"
        (image,) = yaml.safe_load(path.read_text())["images"]
        assert (image["name"], image["newTag"]) == ("rolloutd", project["version"])


def test_the_chart_has_the_settings_and_the_version_of_the_base() -> None:
    """Helm's users get what Kustomize's users get; `make kubernetes` compares all of it.

    But for the names of the Service, which a template makes of the release's.
    """
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((KUSTOMIZE / "base" / "settings.yaml").read_text(encoding="utf-8"))
    assert values["settings"]["http"].pop("allowed_hosts") == []
    del base["http"]["allowed_hosts"]
    assert values["settings"] == base
    assert values["secrets"] == {"kafka": "rolloutd-kafka", "redis": "rolloutd-redis"}
    assert values["resources"] == container_of(BASE)["resources"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_replicas_scale_between_what_is_safe_and_what_helps(tmp_path: Path) -> None:
    """Never below the base's replicas, never above the partitions; by the group that counts."""
    settings = settings_of(next(iter(FILES)), tmp_path).kafka
    partitions = one(STRIMZI, "KafkaTopic", settings.topic("evaluations"))["spec"]["partitions"]
    replicas = one(BASE, "StatefulSet")["spec"]["replicas"]
    keda = list(documents_in(KUSTOMIZE / "components" / "keda"))
    scaled = one(keda, "ScaledObject")["spec"]
    autoscaler = one(documents_in(KUSTOMIZE / "components" / "hpa"), "HorizontalPodAutoscaler")
    assert scaled["minReplicaCount"] == autoscaler["spec"]["minReplicas"] == replicas
    assert scaled["maxReplicaCount"] == autoscaler["spec"]["maxReplicas"] == partitions
    triggers = [trigger["metadata"] for trigger in scaled["triggers"]]
    assert {trigger["topic"] for trigger in triggers} == set(settings.event_topics)
    for trigger in triggers:
        assert trigger["consumerGroup"] == settings.events_group
        assert trigger["bootstrapServers"] == settings.bootstrap_servers
        assert all(isinstance(value, str) for value in trigger.values())
    parameters = one(keda, "TriggerAuthentication")["spec"]["secretTargetRef"]
    assert {each["name"] for each in parameters} == {"rolloutd-kafka"}
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == autoscaler["spec"]["behavior"]


def test_strimzi_s_topics_are_those_that_the_code_would_create(tmp_path: Path) -> None:
    """All of them, with the same clean-up and retention, and as many partitions."""
    settings = settings_of(next(iter(FILES)), tmp_path).kafka
    topics = {each["metadata"]["name"]: each for each in STRIMZI if each["kind"] == "KafkaTopic"}
    assert topics.keys() == {settings.topic(logical) for logical in TOPIC_POLICIES}
    assert TOPIC_POLICIES.keys() == TopicNames.model_fields.keys()
    for logical in TOPIC_POLICIES:
        spec = topics[settings.topic(logical)]["spec"]
        config = {name: str(value) for name, value in spec["config"].items()}
        assert config.pop("min.insync.replicas") == "2"
        ahead = config.pop("message.timestamp.after.max.ms", None)
        assert ahead == ("300000" if logical in TIMED_BY_PRODUCERS else None)
        assert config == topic_config(logical)
        assert (spec["partitions"], spec["replicas"]) == (settings.partitions, 3)


def test_strimzi_s_users_have_the_documented_rights_and_no_others() -> None:
    """Least rights: ops/security.md, which tests try on a real Kafka."""
    users = {each["metadata"]["name"]: each for each in STRIMZI if each["kind"] == "KafkaUser"}
    granted = {}
    for name, user in users.items():
        assert user["spec"]["authentication"] == {"type": "scram-sha-512"}
        rights = {}
        for acl in user["spec"]["authorization"]["acls"]:
            resource = acl["resource"]
            assert resource["patternType"] == "literal"
            rights[resource["type"], resource["name"]] = set(acl["operations"])
        granted[name] = rights
    assert granted == documented_rights()
    for each in STRIMZI:
        assert each["apiVersion"] == "kafka.strimzi.io/v1"
        assert each["metadata"]["labels"] == {"strimzi.io/cluster": "main"}


def test_the_guide_makes_the_namespace_before_its_secrets() -> None:
    """A Secret needs its namespace, and no file is read after the guide has removed it."""
    guide = (KUSTOMIZE / "README.md").read_text(encoding="utf-8")
    made = guide.index("apply -f ops/kubernetes/overlays/$overlay/namespace.yaml")
    kafka, redis = guide.index("generic rolloutd-kafka"), guide.index("generic rolloutd-redis")
    assert made < kafka < redis
    removed = guide.index("rm password ca.crt", kafka)
    assert "Then write the password of Redis's user" in guide[removed:redis]


def test_the_guide_s_secrets_are_for_each_overlay() -> None:
    """The words that it gives for staging are the namespaces of staging's files."""
    guide = (KUSTOMIZE / "README.md").read_text(encoding="utf-8")
    commands = guide[guide.index("overlay=production") : guide.index("4. **Labels**")]
    assert not re.search(r"-n (rolloutd|kafka)\b|overlays/(production|staging)", commands)
    for overlay, strimzi in (("production", "strimzi"), ("staging", "strimzi-staging")):
        folders = (KUSTOMIZE / "overlays" / overlay, KUSTOMIZE / strimzi)
        here, kafka = (
            yaml.safe_load((folder / "kustomization.yaml").read_text())["namespace"]
            for folder in folders
        )
        assert f"overlay={overlay} namespace={here} kafka={kafka}" in guide


def test_the_guide_uninstalls_all_but_the_namespace_with_its_claims() -> None:
    """By a label that every resource gets but the namespace, with which the claims would go."""
    guide = (KUSTOMIZE / "README.md").read_text(encoding="utf-8")
    given = re.search(
        r"^kubectl delete --kustomize ops/kubernetes/overlays/production -l (\S+)=(\S+)$",
        guide,
        re.MULTILINE,
    )
    assert given is not None
    base = yaml.safe_load((KUSTOMIZE / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    (labels,) = base["labels"]  # which kustomize gives to all of the base
    assert labels["pairs"][given[1]] == given[2]
    others = [*documents_in(KUSTOMIZE / "components"), *documents_in(KUSTOMIZE / "overlays")]
    without = {
        each["kind"]
        for each in others
        if each.get("metadata", {}).get("labels", {}).get(given[1]) != given[2]
    }
    assert without == {"Namespace"}
