"""Who sends a request: only true claims count, and others are refused and said."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from controller.web.access.identity import Identity, IdentityRefused, Way
from controller.web.access.recognition import Guardian
from controller.web.access.signing import ValueSigner
from controller.web.bucketing import Generation
from controller.web.flags import FlagBoard
from tests.admission import NotedDesk, admission, bearer, token_line

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ACCESS = (
    "tokens:\n"
    + token_line("bot")
    + token_line("old", ", expires: 2029-12-31T00:00:00Z")
    + "grants: [{role: admin, tokens: [bot, old]}, {role: operator, groups: [payments, sre]}]\n"
)
PROXY = {"addresses": ["10.1.0.0/16", "::1"], "groups_header": "x-groups"}


class Watch:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def guardian(directory: Path, watch: Watch, **sign_in: Any) -> Guardian:
    """Return what recognizes people and machines."""
    return admission(
        directory, ACCESS, FlagBoard(generation=Generation.V3), NotedDesk(), now=watch, **sign_in
    ).guardian


def scope(
    headers: Mapping[str, str] | list[tuple[bytes, bytes]], peer: str = "192.0.2.9"
) -> dict[str, Any]:
    """Return a request."""
    pairs = (
        headers
        if isinstance(headers, list)
        else [(name.encode(), value.encode()) for name, value in headers.items()]
    )
    return {"type": "http", "headers": pairs, "client": (peer, 4711), "query_string": b""}


def test_a_machine_is_known_by_its_token(tmp_path: Path) -> None:
    """Its name says that it is one."""
    who = guardian(tmp_path, Watch()).who(scope(bearer("bot")))
    assert who == Identity("token:bot", Way.TOKEN)


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer wrong",
        "Bearer ",
        bearer("old")["authorization"],
        bearer("bot")["authorization"].replace("Bearer", "Basic"),
    ],
)
def test_an_unknown_or_expired_token_is_refused(tmp_path: Path, authorization: str) -> None:
    """And is not taken for nobody, who may be let see more than was meant."""
    with capture_logs() as lines, pytest.raises(IdentityRefused) as refused:
        guardian(tmp_path, Watch()).who(scope({"authorization": authorization}))
    assert refused.value.status == 401
    assert lines[0]["event"] == "identity_refused"
    assert "wrong" not in str(lines)


def test_who_guesses_tokens_is_slowed_down_alone(tmp_path: Path) -> None:
    """Another client's right token is accepted meanwhile."""
    known = guardian(tmp_path, Watch())
    statuses = []
    for _ in range(20):
        with pytest.raises(IdentityRefused) as refused:
            known.who(scope({"authorization": "Bearer guess"}))
        statuses.append(refused.value.status)
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert known.who(scope(bearer("bot"), peer="192.0.2.10")) is not None


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "::1"])
def test_a_proxy_names_people(tmp_path: Path, peer: str) -> None:
    """With those of their groups that have a role."""
    headers = {"x-forwarded-user": "ada@example.org", "x-groups": "payments, others ,sre"}
    who = guardian(tmp_path, Watch(), proxy=PROXY).who(scope(headers, peer))
    assert who == Identity("ada@example.org", Way.PROXY, frozenset({"payments", "sre"}))


@pytest.mark.parametrize("peer", ["192.0.2.9", "10.2.0.1", "::2", "", "unix"])
def test_a_forged_header_is_refused_and_said(tmp_path: Path, peer: str) -> None:
    """From any address but the proxy's."""
    with capture_logs() as lines, pytest.raises(IdentityRefused, match="comes from another") as no:
        guardian(tmp_path, Watch(), proxy=PROXY).who(scope({"x-forwarded-user": "ada"}, peer))
    assert no.value.status == 403
    assert "sign_in.proxy.addresses" in lines[0]["error"]


def test_without_a_proxy_its_header_means_nothing(tmp_path: Path) -> None:
    """Nobody is known by it."""
    headers = {"x-forwarded-user": "ada"}
    assert guardian(tmp_path, Watch()).who(scope(headers)) is None


@pytest.mark.parametrize(
    "values",
    [
        [b"ada", b"eve"],
        [b""],
        [b"  "],
        [b"\xff"],
        [b"rolloutd"],
        [b"RolloutD"],
        [b"token:bot"],
        [b"Token:bot"],
        [b"a\x07b"],
        ["ada\u200b".encode()],  # a zero-width space: it looks like ada
        ["a\u00adda".encode()],  # a soft hyphen
        ["ada\u2060".encode()],
        ["\ufeffada".encode()],
        [b"a" * 201],
    ],
)
def test_a_name_that_nobody_may_have_is_refused(tmp_path: Path, values: list[bytes]) -> None:
    """Two names, none, the controller's own, or one that looks like a machine's."""
    headers = [(b"x-forwarded-user", value) for value in values]
    with pytest.raises(IdentityRefused):
        guardian(tmp_path, Watch(), proxy=PROXY).who(scope(headers, "10.1.2.3"))


# --- sessions ---


def session(known: Guardian, groups: frozenset[str] = frozenset()) -> str:
    """Begin ada's session; return the cookie as her browser sends it."""
    text = known.sessions.begin("ada@example.org", groups).decode()
    return text.partition(";")[0]


def test_a_session_is_a_signed_cookie(tmp_path: Path) -> None:
    """No script and no other site has it, and any replica with the key reads it."""
    watch = Watch()
    known = guardian(tmp_path, watch)
    text = known.sessions.begin("ada@example.org", frozenset({"sre"})).decode()
    assert "HttpOnly" in text
    assert "SameSite=Lax" in text
    assert "Secure" not in text
    other = guardian(tmp_path, watch)
    cookies = f"theirs=1; {text.partition(';')[0]}; more=2"
    who = other.who(scope({"cookie": cookies}))
    assert who is not None
    assert (who.name, who.way, who.groups) == ("ada@example.org", Way.SESSION, frozenset({"sre"}))


def test_under_tls_the_cookie_stays_there(tmp_path: Path) -> None:
    """It is kept for this host alone, and is never sent in the clear."""
    known = guardian(tmp_path, Watch(), public_url="https://rollouts.example.org")
    text = known.sessions.begin("ada", frozenset()).decode()
    assert text.startswith("__Host-rolloutd-session=")
    assert "; Secure" in text
    assert "; Path=/;" in text
    assert "Domain" not in text


def test_a_session_ends(tmp_path: Path) -> None:
    """By time, and by signing out."""
    watch = Watch()
    known = guardian(tmp_path, watch)
    cookie, other = session(known), session(known)
    who = known.who(scope({"cookie": cookie}))
    assert who is not None
    assert "Max-Age=0" in known.sessions.end(who).decode()
    assert known.who(scope({"cookie": cookie})) is None
    assert known.who(scope({"cookie": other})) is not None
    watch.now += timedelta(hours=8)
    assert known.who(scope({"cookie": other})) is None


def test_a_changed_cookie_is_nobodys(tmp_path: Path) -> None:
    """Whatever one character becomes, and with another key or purpose."""
    known = guardian(tmp_path, Watch())
    name, _, value = session(known).partition("=")
    for index in range(len(value)):
        changed = value[:index] + ("A" if value[index] != "A" else "B") + value[index + 1 :]
        found = known.who(scope({"cookie": f"{name}={changed}"}))
        # The last character of base64 has bits that stand for nothing.
        assert found is None or index in (value.index(".") - 1, len(value) - 1)
    forged = ValueSigner(b"another key").sign(
        "session", {"name": "eve", "groups": [], "id": "x"}, NOW
    )
    other = known.signer.sign("state", {"name": "eve", "groups": [], "id": "x"}, NOW.max)
    for value in (forged, other, "", ".", "a.b", "x" * 5000, "é.é"):
        assert known.who(scope({"cookie": f"{name}={value}"})) is None


# --- requests that change something ---

ADA = Identity("ada", Way.SESSION, frozenset(), "s1")


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost:8080"},
        {},
    ],
)
def test_another_site_cannot_use_a_session(tmp_path: Path, headers: dict[str, str]) -> None:
    """Not even with the right token of the form."""
    known = guardian(tmp_path, Watch())
    token = known.signer.form_token(ADA)
    with pytest.raises(IdentityRefused, match="another site"):
        known.check_form(scope({"host": "localhost:8080", **headers}), ADA, token)


@pytest.mark.parametrize(
    "headers", [{"sec-fetch-site": "same-origin"}, {"origin": "http://localhost:8080"}]
)
def test_a_form_needs_the_token_of_its_session(tmp_path: Path, headers: dict[str, str]) -> None:
    """Neither another person's nor another session's."""
    known = guardian(tmp_path, Watch())
    request = scope({"host": "localhost:8080", **headers})
    known.check_form(request, ADA, known.signer.form_token(ADA))
    eve = Identity("eve", Way.SESSION, frozenset(), "s1")
    again = Identity("ada", Way.SESSION, frozenset(), "s2")
    for token in (known.signer.form_token(eve), known.signer.form_token(again), "", "é"):
        with pytest.raises(IdentityRefused, match="earlier session"):
            known.check_form(request, ADA, token)


def test_machines_need_no_form(tmp_path: Path) -> None:
    """No browser sends their token by itself."""
    guardian(tmp_path, Watch()).check_form(scope({}), Identity("token:bot", Way.TOKEN), "")


def test_a_foreign_proxys_header_is_refused_beside_a_token(tmp_path: Path) -> None:
    """Whoever sends both claims to be two. From the proxy itself the token counts."""
    guard = guardian(tmp_path, Watch(), proxy=PROXY)
    both = {**bearer("bot"), "x-forwarded-user": "ada"}
    with pytest.raises(IdentityRefused, match=r"counts only from the addresses of sign_in\.proxy"):
        guard.who(scope(both))
    who = guard.who(scope(both, "10.1.2.3"))
    assert who is not None
    assert who.way is Way.TOKEN
    unnamed = guardian(tmp_path, Watch()).who(scope(both))  # without a proxy the header is nobody's
    assert unnamed is not None
    assert unnamed.way is Way.TOKEN
