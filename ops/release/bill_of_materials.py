"""The bills of materials (SBOM) of a release, as CycloneDX 1.6.

Written by hand because the same release must give the same bytes: time and serial number come from
what was released. The release is refused unless they pass CycloneDX's own schema.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from locked_parts import Part

#: Any fixed value; serial numbers are derived from it and from the content.
_SERIAL_NUMBERS: Final = uuid.UUID("5f0a6a39-1f5e-4d38-9a5c-2d0c7b1c0b9e")


@dataclass(frozen=True, slots=True)
class Released:
    """A file of ours that a bill describes."""

    name: str
    version: str
    sha256: str  # of its wheel
    committed: int  # when, in seconds since 1970

    @property
    def url(self) -> str:
        """Return its package URL."""
        return f"pkg:pypi/{self.name}@{self.version}"


def bill(of: Released, parts: Sequence[Part], is_spdx: Callable[[str], bool]) -> str:
    """Return the bill as JSON. The same content gives the same text.

    `is_spdx` says whether a license is an SPDX expression; what is none is given as a name.
    """
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(of.committed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "make release"}]},
            "component": {
                "type": "application",
                "bom-ref": of.url,
                "name": of.name,
                "version": of.version,
                "purl": of.url,
                "licenses": [{"expression": "Apache-2.0"}],
                "hashes": [{"alg": "SHA-256", "content": of.sha256}],
            },
        },
        "components": [_component(part, is_spdx) for part in parts],
        "dependencies": _dependencies(of, parts),
    }
    serial = uuid.uuid5(_SERIAL_NUMBERS, json.dumps(document, sort_keys=True))
    document = {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", **document}
    document["serialNumber"] = f"urn:uuid:{serial}"
    return json.dumps(document, indent=2) + "\n"


def _component(part: Part, is_spdx: Callable[[str], bool]) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": part.url,
        "name": part.name,
        "version": part.version,
        "purl": part.url,
    }
    if part.license is not None:
        said = part.license
        component["licenses"] = [
            {"expression": said} if is_spdx(said) else {"license": {"name": said}}
        ]
    if part.kind == "cargo":
        component["hashes"] = [{"alg": "SHA-256", "content": one} for one in part.sha256]
    properties = [] if part.marker is None else [("rolloutd:marker", part.marker)]
    if part.kind == "pypi":  # one of several files is installed, so none of them is *the* hash
        properties += [("rolloutd:allowed-sha256", one) for one in part.sha256]
    if properties:
        component["properties"] = [{"name": name, "value": value} for name, value in properties]
    return component


def _dependencies(of: Released, parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return what needs what, as the lock files say."""
    needs: dict[str, list[str]] = {}
    for part in parts:
        for name in part.needed_by:
            needs.setdefault(name, []).append(part.url)
    ours = [{"ref": of.url, "dependsOn": sorted(needs.get(of.name, ()))}]
    theirs = [{"ref": part.url, "dependsOn": sorted(needs.get(part.name, ()))} for part in parts]
    return ours + theirs


def is_spdx_expression(said: str) -> bool:
    """Return whether the words are an SPDX license expression."""
    from license_expression import ExpressionError, get_spdx_licensing

    try:
        return not get_spdx_licensing().validate(said).errors
    except ExpressionError:
        return False


def check_bill(path: Path) -> None:
    """Hold a bill to the schema of CycloneDX. Raises SystemExit with its first fault."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text(encoding="utf-8"))
    if fault is not None:
        raise SystemExit(f"{path.name} is not CycloneDX 1.6: {fault}")
