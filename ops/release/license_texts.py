"""The file of third-party licenses: who wrote what is in a release, and under which terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from locked_parts import Part

_RULE: Final = "=" * 80
_HEAD: Final = """\
Third-party licenses of rolloutd {version}

The wheel of rolloutd holds no code of others. It needs the packages of the first list, which the
image holds. The wheel of rolloutd-native and the image hold the compiled crates of the second list,
and parts of the Rust standard library (MIT OR Apache-2.0). Crates that only build it are listed
too.
"""


def license_file(version: str, packages: Sequence[Part], crates: Sequence[Part]) -> str:
    """Return the text of the file. The same parts give the same text."""
    lists = [("Python packages", packages), ("Rust crates", crates)]
    lines = [_HEAD.format(version=version)]
    for title, parts in lists:
        lines += [f"{title}\n"]
        lines += [f"  {part.name} {part.version}: {_terms(part)}" for part in parts]
        lines += [""]
    for title, parts in lists:
        for part in parts:
            lines += [_RULE, f"{part.name} {part.version} ({title}): {_terms(part)}", _RULE, ""]
            if not part.texts:
                lines += ["Its package brings no text of a license.", ""]
            for name, text in sorted(part.texts.items()):
                lines += [f"--- {name}", "", *(line.rstrip() for line in text.splitlines()), ""]
    return "\n".join(lines)


def _terms(part: Part) -> str:
    if part.license is not None:
        return part.license
    if part.marker is not None:
        return f"not installed on the machine of the release; only where {part.marker}"
    return "its metadata names no license"
