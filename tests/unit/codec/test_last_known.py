from __future__ import annotations

import hashlib
from datetime import timedelta

import pytest

from controller.codec.last_known import Origin, last_known_from_bytes, last_known_to_bytes
from controller.codec.rollouts import rollout_to_json
from controller.core.rollout import RolledBack
from controller.errors import DocumentNewer, DocumentUnreadable, ForeignDocument
from tests.builders import T0, make_plan, make_rollout

OURS = Origin("production", "shop.")
ROLLOUTS = (
    make_rollout(percent=50.0, revision=7),
    make_rollout(
        flag_key="ended", plan=make_plan(flag_key="ended"), percent=0.0, phase=RolledBack(T0, "bad")
    ),
)


def written(origin: Origin = OURS) -> bytes:
    """Return a state of two flags."""
    return last_known_to_bytes(origin, T0, [rollout_to_json(one) for one in ROLLOUTS])


def signed(body: bytes) -> bytes:
    """Return a content with the checksum that fits it."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_what_was_written_is_read() -> None:
    """Rollouts and the time come back as they were, also under the environment's former name."""
    state = last_known_from_bytes(written(), OURS)
    assert (state.known_at, state.rollouts) == (T0, ROLLOUTS)
    assert state.confirmed_at is None
    documents, confirmed_at = [rollout_to_json(ROLLOUTS[0])], T0 - timedelta(minutes=5)
    with_word = last_known_to_bytes(OURS, T0, documents, confirmed_at)
    assert last_known_from_bytes(with_word, OURS).confirmed_at == confirmed_at
    renamed = last_known_from_bytes(written(), Origin("prod", "shop."), ("production",))
    assert renamed.rollouts == ROLLOUTS


@pytest.mark.parametrize("origin", [Origin("staging", "shop."), Origin("production", "")])
def test_the_state_of_another_environment_is_refused(origin: Origin) -> None:
    """Neither another name nor another topic prefix is ours."""
    with pytest.raises(DocumentUnreadable):
        last_known_from_bytes(written(origin), OURS)
    with pytest.raises(ForeignDocument):
        last_known_from_bytes(written(Origin("staging", "shop.")), OURS)


def test_no_damage_is_read_as_a_state() -> None:
    """Any cut and any changed byte is refused: a part of the flags would delete the others."""
    content = written()
    for end in (0, 1, 63, 64, 65, 200, len(content) // 2, len(content) - 1):
        with pytest.raises(DocumentUnreadable):
            last_known_from_bytes(content[:end], OURS)
    for place in range(0, len(content), 97):
        changed = bytearray(content)
        changed[place] ^= 1
        with pytest.raises(DocumentUnreadable):
            last_known_from_bytes(bytes(changed), OURS)


def test_a_header_that_does_not_fit_is_refused() -> None:
    """Also with a checksum that fits: a newer format, a missing document, no header."""
    body = written().partition(b"\n")[2]
    with pytest.raises(DocumentNewer):
        last_known_from_bytes(signed(body.replace(b'"format":1', b'"format":2')), OURS)
    for damaged in (
        body.replace(b'"rollouts":2', b'"rollouts":3'),
        body.replace(b"+00:00", b"").replace(b'Z"', b'"', 1),
        b"[]\n{}",
        b'{"unknown":' + b"[" * 100_000,
        b"",
    ):
        with pytest.raises(DocumentUnreadable):
            last_known_from_bytes(signed(damaged), OURS)


def test_an_empty_state_is_a_state() -> None:
    """Without a rollout there is a header alone."""
    content = last_known_to_bytes(OURS, T0 + timedelta(seconds=1), [])
    assert last_known_from_bytes(content, OURS).rollouts == ()
