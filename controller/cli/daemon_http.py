"""Reads an address of a replica over HTTP: bounded in time and size, and with its authorities.

Does not belong here: what an answer means (`daemon_answers.py`, `doctor.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from controller.cli.within import within

if TYPE_CHECKING:
    import ssl

#: Names a PEM file of the authorities that may sign a replica's certificate. Unset: the usual ones.
CA_VARIABLE: Final = "ROLLOUTCTL_CA_FILE"
#: Of a whole answer: a list of all rollouts may be long.
TOTAL_SECONDS: Final = 10.0
MAX_BYTES: Final = 1_000_000
#: The system's number of an error, which says nothing that its words do not say.
_SYSTEM_NUMBER: Final = re.compile(r"\[Errno -?\d+\] ")


class NoAnswer(Exception):
    """A replica gave no whole answer: why, and what to do next, for a person."""


@dataclass(frozen=True, slots=True)
class ReplicaAnswer:
    """A whole answer, whatever its status."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


def read_address(
    address: str,
    path: str,
    *,
    port: str,
    pause_seconds: float,
    most_bytes: int = MAX_BYTES,
    headers: Mapping[str, str] | None = None,
) -> ReplicaAnswer:
    """Return what a replica answers to a GET. Raises NoAnswer, after `TOTAL_SECONDS` at most.

    `port` is the setting that gives the address its port; `pause_seconds` is how long the other
    side may be silent in between.
    """
    verify, why = trusted()
    if why:
        raise NoAnswer(f"next: {why}")
    url = f"{address.rstrip('/')}{path}"
    import httpx  # slow to load, and needed only with an address

    def read() -> ReplicaAnswer:
        with httpx.stream(
            "GET", url, headers=headers, timeout=pause_seconds, trust_env=False, verify=verify
        ) as answer:
            body = bytearray()
            for chunk in answer.iter_raw():
                body += chunk
                if len(body) > most_bytes:
                    raise NoAnswer(f"{address}: the answer is longer than {most_bytes} bytes")
        return ReplicaAnswer(answer.status_code, answer.headers, bytes(body))

    try:
        return within(TOTAL_SECONDS, read)
    except TimeoutError as trouble:
        step = f"ask another replica, or see whether this is its {port}"
        raise NoAnswer(f"{address} gave {trouble}; next: {step}") from trouble
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as trouble:
        why = str(trouble).rstrip(".")
        step = _next_step(why, port)
        why = _SYSTEM_NUMBER.sub("", why)
        raise NoAnswer(f"{address} cannot be reached: {why}; next: {step}") from trouble


def _next_step(why: str, port: str) -> str:
    """Return what to do about a replica that does not answer."""
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return (
            f"let {CA_VARIABLE} name the PEM file of the authority that signed its certificate, "
            f"and use a name that stands in it"
        )
    if "WRONG_VERSION_NUMBER" in why:
        return "write http://, as it speaks no TLS there"
    if "disconnected without" in why:
        return f"see whether this is its {port}; write https:// if it has http.certificate_file"
    return f"see whether that replica runs, and whether this is its {port}"


def trusted() -> tuple[ssl.SSLContext | bool, str]:
    """Return what a replica's certificate is checked with, and why that cannot be as asked for."""
    path = os.environ.get(CA_VARIABLE)
    if not path:
        return True, ""
    import ssl  # slow to load, and seldom needed

    try:
        return ssl.create_default_context(cafile=path), ""
    except OSError as error:
        why = f"let {CA_VARIABLE} name a PEM file of authorities ({path}: {error.strerror})"
        return True, why
