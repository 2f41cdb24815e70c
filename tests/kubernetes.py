"""The manifests of ops/kubernetes and ops/helm, and the programs that check them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.manifest_tools import manifest_tools

ROOT: Final = Path(__file__).parents[1]
KUSTOMIZE: Final = ROOT / "ops" / "kubernetes"
#: The newest Kubernetes that every manifest is written for.
VERSION: Final = "1.36"
CHART: Final = ROOT / "ops" / "helm" / "rolloutd"
#: Where `make kubernetes` puts its programs, and KEDA's definitions of its resources.
TOOLS_VARIABLE: Final = "ROLLOUTD_TEST_KUBERNETES"
#: Optional tests of kube-score that we want; the others ask for requests that equal limits.
OPTIONAL: Final = ("container-seccomp-profile", "container-ports-check")
Document = dict[str, Any]

#: Validates the documents that come as JSON lines, and prints a line for each that is wrong.
_VALIDATOR: Final = """
import json, sys, kubernetes_validate
for line in sys.stdin:
    document = json.loads(line)
    name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    try:
        kubernetes_validate.validate(document, sys.argv[1], strict=True)
    except kubernetes_validate.ValidationError as error:
        print(f"{name}: {error.message}")
    except kubernetes_validate.SchemaNotFoundError as error:
        print(f"{name}: no schema: {error}")
"""


def documents_of(text: str) -> list[Document]:
    """Return the documents of a text, without empty ones."""
    return [document for document in yaml.safe_load_all(text) if document]


def documents_in(folder: Path) -> Iterator[Document]:
    """Yield every resource in the files of a folder, and of those below it."""
    for path in sorted(folder.rglob("*.yaml")):
        if path.name not in ("kustomization.yaml", "settings.yaml"):
            yield from documents_of(path.read_text(encoding="utf-8"))


def one(documents: Iterable[Document], kind: str, name: str = "rolloutd") -> Document:
    """Return the resource of a kind and name; there is exactly one."""
    (found,) = [
        each for each in documents if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def is_of_kubernetes(document: Mapping[str, Any]) -> bool:
    """Return whether Kubernetes itself knows the kind: its groups have no name, or end so."""
    group, slash, _ = document["apiVersion"].partition("/")
    return not slash or "." not in group or group.endswith(".k8s.io")


def faults_in(documents: Iterable[Document]) -> list[str]:
    """Return what Kubernetes' own schemas find wrong, unknown keys too."""
    lines = "".join(f"{json.dumps(each)}\n" for each in documents if is_of_kubernetes(each))
    done = subprocess.run(
        [str(manifest_tools() / "python"), "-c", _VALIDATOR, VERSION],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def pod_of(document: Document) -> Document:
    """Return the pod that a workload makes."""
    pod: Document = document["spec"]["template"]["spec"]
    return pod


def departures_from_restricted(pod: Document) -> list[str]:
    """Return what the Pod Security Standard `restricted` forbids, and what we ask beyond it."""
    found = []
    context = pod.get("securityContext", {})
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        found.append("seccompProfile")
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        found.append("runAsNonRoot")
    found += [f"{key} is set" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    allowed = {"name", "configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim"}
    found += [f"volume {each['name']}" for each in pod["volumes"] if not each.keys() <= allowed]
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            found.append("privileges")
        if own.get("capabilities") != {"drop": ["ALL"]}:
            found.append("capabilities")
        if own.get("readOnlyRootFilesystem") is not True:
            found.append("writable root")
        if any("hostPort" in port for port in container.get("ports", [])):
            found.append("hostPort")
    if pod.get("automountServiceAccountToken") is not False:
        found.append("token is mounted")
    return found


def documented_rights() -> dict[str, dict[tuple[str, str], set[str]]]:
    """Return the operations of each user on each topic and group, as ops/security.md grants them.

    With Describe on topics, which Kafka's Read and Write imply.
    """
    guide = (ROOT / "ops" / "security.md").read_text(encoding="utf-8")
    lines = re.findall(
        r"^kafka-acls --add --allow-principal User:(\S+) --operation (\S+) --(topic|group) (\S+)$",
        guide,
        re.MULTILINE,
    )
    rights: dict[str, dict[tuple[str, str], set[str]]] = {}
    for user, operation, kind, name in lines:
        granted = rights.setdefault(user, {}).setdefault((kind, name), set())
        granted |= {operation, "Describe"} if kind == "topic" else {operation}
    return rights


def tools() -> Path:
    """Return the directory of `make kubernetes`. Skips the test without it."""
    named = os.environ.get(TOOLS_VARIABLE)
    if not named:
        pytest.skip(f"NO KUSTOMIZE, NO HELM: `make kubernetes` names them by {TOOLS_VARIABLE}")
    return Path(named).absolute()


def run(program: str, *arguments: str) -> str:
    """Return what a program of `make kubernetes` prints. Raises AssertionError with its errors."""
    done = subprocess.run(
        [str(tools() / "bin" / program), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def score(documents: list[Document], directory: Path) -> str:
    """Return kube-score's verdicts that are not OK, one a line."""
    file = directory / "all.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    optional = [word for name in OPTIONAL for word in ("--enable-optional-test", name)]
    done = subprocess.run(
        [str(tools() / "bin" / "kube-score"), "score", str(file), "-o", "ci", *optional],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("[OK]")]) > 25, done.stdout + done.stderr
    return "\n".join(line for line in lines if not line.startswith(("[OK]", "[SKIPPED]")))


#: Compares a resource with a CustomResourceDefinition, both from standard input; unknown keys are
#: faults, as with `kubectl apply`.
_CUSTOM: Final = """
import json, sys, jsonschema
def closed(schema):
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        return {key: closed(value) for key, value in schema.items()}
    return [closed(each) for each in schema] if isinstance(schema, list) else schema
given = json.load(sys.stdin)
version = given["document"]["apiVersion"].partition("/")[2]
(schema,) = [v["schema"]["openAPIV3Schema"] for v in given["definition"]["spec"]["versions"]
             if v["name"] == version]
schema = closed(schema)
schema["properties"]["metadata"] = {"type": "object"}
for error in jsonschema.Draft7Validator(schema).iter_errors(given["document"]):
    print(error.json_path, error.message[:200])
"""


def custom_faults(document: Document) -> list[str]:
    """Return what KEDA's definition of a resource finds wrong."""
    plural = {"ScaledObject": "scaledobjects", "TriggerAuthentication": "triggerauthentications"}
    file = tools() / "keda" / f"keda.sh_{plural[document['kind']]}.yaml"
    given: dict[str, Any] = {
        "document": document,
        "definition": yaml.safe_load(file.read_text(encoding="utf-8")),
    }
    done = subprocess.run(
        [str(manifest_tools() / "python"), "-c", _CUSTOM],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()
