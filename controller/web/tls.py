"""TLS on our own listener: the certificate, its renewal without a restart, and the handshake.

Belongs here: what TLS adds to a connection. Does not belong here: how many connections there may be
and for how long (`server.py`); they are counted before their handshake, which would cost most.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from controller.errors import ConfigInvalid

#: How often a handshake looks whether the files have changed.
RENEW_SECONDS: Final = 10.0
#: For the end of a connection that says goodbye; then it is cut.
_SHUTDOWN_SECONDS: Final = 1.0
#: Seconds between two lines of the log about handshakes that failed: strangers cause as many as
#: they like.
FAILED_LINE_SECONDS: Final = 60.0
#: What OpenSSL says about a certificate that clients will not take, by its number.
_REFUSED_BY_CLIENTS: Final = {
    9: "is not valid yet: check this machine's clock, or use the one before",
    10: "has expired: renew it; new files are used without a restart",
    26: "is not for servers (its extended key usage): make one that is",
}
#: Under this name the extensions of a request have the names of its client's certificate.
CLIENT_CERTIFICATE: Final = "rolloutd.client_certificate"
#: Kinds of names in a certificate, as the standard library calls them, and as the settings do.
_KINDS: Final = {"DNS": "dns", "URI": "uri", "email": "email"}
_Stamp = tuple[tuple[int, int], ...]

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Certificate:
    """Our certificate and its key, read again when their files change."""

    certificate_file: Path
    key_file: Path | None  # None: the key is in the same file
    where: str  # the section that names them, for people
    client_ca_file: Path | None = None  # who signs certificates of clients; None: none is asked for
    context: ssl.SSLContext = field(init=False)
    _stamp: _Stamp = field(init=False, default=())
    _looked_at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        """Read the files. Raises ConfigInvalid with the fix."""
        self._stamp, self.context = self._stamps(), self._read()
        self._looked_at = time.monotonic()

    def warn(self) -> None:
        """Log why clients will refuse the certificate, where that can be seen here.

        It is no error: a controller that does not start protects nobody.
        """
        if (why := _why_refused(self.context, self.certificate_file)) is not None:
            _log.warning("certificate_doubtful", file=str(self.certificate_file), warning=why)

    async def newest(self) -> ssl.SSLContext:
        """Return the context for a handshake. Files that cannot be used change nothing."""
        now = time.monotonic()
        if now - self._looked_at >= RENEW_SECONDS:
            self._looked_at = now
            await asyncio.to_thread(self._renew)
        return self.context

    def _renew(self) -> None:
        try:
            stamp = self._stamps()
            if stamp == self._stamp:
                return
            # A new context, as one that is half replaced would have another's key.
            self.context = self._read()
            self._stamp = stamp
            _log.info("certificate_renewed", file=str(self.certificate_file))
            self.warn()
        except ConfigInvalid as refused:
            # Both files are rarely replaced in one moment: the next look finds them whole.
            _log.warning("certificate_not_renewed", error=str(refused))

    def _stamps(self) -> _Stamp:
        """Return when the files were written, and which they are."""
        named = (self.certificate_file, self.key_file, self.client_ca_file)
        files = [file for file in named if file is not None]
        try:
            found = [file.stat() for file in files]
        except OSError as error:
            raise self._unusable(f"{error.filename}: {error.strerror}") from error
        return tuple((one.st_mtime_ns, one.st_ino) for one in found)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # With no password OpenSSL would ask for one on the terminal; an empty one prevents it.
            context.load_cert_chain(self.certificate_file, self.key_file, password="")
        except ssl.SSLError as error:
            raise self._unusable(_words(error)) from error
        except OSError as error:
            raise self._unusable(f"{error.strerror}") from error
        if self.client_ca_file is not None:
            self._ask_clients(context, self.client_ca_file)
        return context

    def _ask_clients(self, context: ssl.SSLContext, client_ca_file: Path) -> None:
        """Have clients asked for a certificate. Raises ConfigInvalid."""
        try:
            context.load_verify_locations(client_ca_file)
        except (ssl.SSLError, OSError) as error:
            raise ConfigInvalid(
                f"{self.where}.client_ca_file: {client_ca_file} cannot be used: "
                f"{_authority_words(error)}"
            ) from error
        # Apps and people have none, and are answered without.
        context.verify_mode = ssl.CERT_OPTIONAL
        # A client's own certificate in the file is trusted as it is, without its authority.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN

    def _unusable(self, why: str) -> ConfigInvalid:
        key = self.key_file or "the same file"
        return ConfigInvalid(
            f"{self.where}.certificate_file: {self.certificate_file} with the key in {key} cannot "
            f"be used: {why}"
        )


def _words(error: ssl.SSLError) -> str:
    """Return what is wrong with a certificate and its key, and how to fix it."""
    match error.reason:
        case "KEY_VALUES_MISMATCH":
            return "the key is another certificate's; give both of one pair"
        case "EE_KEY_TOO_SMALL" | "CA_MD_TOO_WEAK":
            return f"{error.reason.lower().replace('_', ' ')}; make a new certificate"
        case "BAD_DECRYPT" | "BAD_PASSWORD_READ":
            return "the key needs a password; give one without (openssl pkey -in KEY -out PLAIN)"
        case None | "NO_START_LINE":
            return (
                "they are not PEM, or the key is missing; write the certificate first, then those "
                "of its authorities, and the key into key_file or the same file"
            )
        case reason:
            return reason.lower().replace("_", " ")


def _authority_words(error: OSError) -> str:
    """Return what is wrong with a file of authorities."""
    if isinstance(error, ssl.SSLError):
        return "there is no certificate in PEM in it; give those that sign the clients' ones"
    return f"{error.strerror}"


def client_names(transport: asyncio.Transport) -> frozenset[str]:
    """Return the names of the certificate that a client has shown and that was verified.

    In the form of the settings (`sha256:...`, `cn:...`); empty where it has shown none.
    """
    encryption = transport.get_extra_info("ssl_object")
    der = None if encryption is None else encryption.getpeercert(binary_form=True)
    if der is None:
        return frozenset()
    told = encryption.getpeercert() or {}  # empty where it was not verified
    if not told:
        return frozenset()
    names = {f"sha256:{hashlib.sha256(der).hexdigest()}"}
    for part in told.get("subject", ()):
        names |= {f"cn:{value}" for kind, value in part if kind == "commonName"}
    for kind, value in told.get("subjectAltName", ()):
        if kind in _KINDS:
            text = value.lower() if kind == "DNS" else value
            names.add(f"{_KINDS[kind]}:{text}")
    return frozenset(names)


def _why_refused(context: ssl.SSLContext, certificate_file: Path) -> str | None:
    """Return why a client that trusts this very certificate would refuse it; None: it would not.

    A handshake in memory, as the standard library has no other way to read a certificate's dates.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False  # which names people use is not known here
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(certificate_file)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = context.wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as refused:
            return _REFUSED_BY_CLIENTS.get(refused.verify_code)
    return None


class FailedHandshakes:
    """Counts handshakes that failed, and logs them: the first at once, then one line a minute."""

    def __init__(self, count: Callable[[str], object]) -> None:
        """`count` is told the reason of each."""
        self._count = count
        self._reasons: Counter[str] = Counter()
        self._logged_at: float | None = None

    def note(self, client: str, error: Exception) -> None:
        """Note one of this client."""
        reason = why_failed(error)
        self._count(reason)
        self._reasons[reason] += 1
        now = time.monotonic()
        if self._logged_at is None or now - self._logged_at >= FAILED_LINE_SECONDS:
            _log.warning("tls_handshakes_failed", last_client=client, **self._reasons)
            self._logged_at = now
            self._reasons.clear()


def why_failed(error: Exception) -> str:
    """Return the reason as one of `HANDSHAKE_FAILURES`."""
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ConnectionAbortedError):  # asyncio's, after the time for it
        return "timeout"
    if reason in ("HTTP_REQUEST", "WRONG_VERSION_NUMBER"):
        return "no_tls"
    if "_ALERT_" in reason:
        return "refused_by_client"
    return "protocol" if isinstance(error, ssl.SSLError) else "lost"


class _Early(asyncio.Protocol):
    """What a client sends right behind its handshake, before the connection is handed over."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self.data = bytearray()
        self._protocol = protocol

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


async def shake_hands(
    transport: asyncio.Transport,
    protocol: asyncio.Protocol,
    certificate: Certificate,
    seconds: float,
) -> tuple[asyncio.Transport, bytes]:
    """Return the encrypted transport of a plain one that is not being read, and its first data.

    The encrypted one has `protocol`, which is given everything that comes after the first data.

    Raises OSError (ssl.SSLError is one) when the client does not finish within `seconds`; its
    connection is closed then.
    """
    context, early = await certificate.newest(), _Early(protocol)
    encrypted = await asyncio.get_running_loop().start_tls(
        transport,
        early,
        context,
        server_side=True,
        ssl_handshake_timeout=seconds,
        ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    if encrypted is None:
        raise ConnectionResetError("the connection was lost in its handshake")
    encrypted.set_protocol(protocol)
    return encrypted, bytes(early.data)
