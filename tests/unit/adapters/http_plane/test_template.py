"""Templates of HTTP planes: what is filled in, and what is refused before the first call."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controller.adapters.http_plane.json_paths import JsonPath, NotThere
from controller.adapters.http_plane.placeholders import Text
from controller.adapters.http_plane.template import HttpTemplate
from controller.adapters.http_plane.template_file import SHIPPED, load_template, parse_template
from controller.errors import ConfigInvalid, FlagPlaneUnavailable
from tests.builders import make_rollout

SIMPLE: dict[str, Any] = {
    "write": {"method": "POST", "url": "https://flags.example.org/{flag}", "body": {}}
}
READ = {
    "url": "https://flags.example.org/{flag}",
    "extract": {"rules": "/rules", "share": "/rules/[id=mine]/share"},
}
VALUES = {
    "launchdarkly": {"project": "shop"},
    "flagsmith": {"project": "7", "environment": "key"},
    "growthbook": {},
    "webhook": {"url": "https://hooks.example.org/rolloutd"},
}


def made(given: dict[str, str] | None = None, **parts: Any) -> HttpTemplate:
    """Return a template of these parts."""
    return parse_template(yaml.safe_dump({**SIMPLE, **parts}), given or {})


def written(template: HttpTemplate, answer: Any = None, **overrides: Any) -> Any:
    """Return the body that sets what is decided."""
    scope = template.scope(make_rollout(**overrides), "hunter2")
    if template.reads:
        template.extract(0, answer, scope)
    return template.write_request(scope).body


# --- texts ---


def test_a_lone_placeholder_keeps_its_type_and_others_become_text() -> None:
    """`{percent}` is a number in JSON, `{percent} %` a text.

    A choice gives one of its words; doubled braces are braces.
    """
    scope = {"percent": 25, "on": True, "rules": [1]}
    assert Text.parse("{percent}").value(scope) == 25
    assert Text.parse("{rules}").value(scope) == [1]
    assert Text.parse("{percent} %, {on}").value(scope) == "25 %, true"
    assert Text.parse("{on?up:down}").value(scope) == "up"
    assert Text.parse("{on?up:down}").value({"on": False}) == "down"
    assert Text.parse("{{percent}}").value(scope) == "{percent}"
    assert Text.parse("").value(scope) == ""


@pytest.mark.parametrize(
    "text",
    ["{", "}", "{}", "{a", "a}", "{A}", "{a.b}", "{a?b}", "{a!r}", "{a:>10}", "{{{", "{a b}"],
)
def test_what_is_no_placeholder_is_refused(text: str) -> None:
    """There are no expressions, formats or attributes, and no brace is left over."""
    with pytest.raises(ValueError, match="write"):
        Text.parse(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    """Nothing but a ValueError comes of a text, and what has no braces is itself."""
    try:
        parsed = Text.parse(text)
    except ValueError:
        assert "{" in text or "}" in text
        return
    if "{" not in text and "}" not in text:
        assert parsed.value({}) == text


# --- paths ---

DOCUMENT = {
    "a/b": {"~": 1},
    "rules": [
        {"id": "x", "on": True, "n": 7},
        {"id": "y", "on": False, "n": 8},
        "text",
        {"n": 7.5},
    ],
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", DOCUMENT),
        ("/a~1b/~0", 1),
        ("/rules/1/id", "y"),
        ("/rules/[id=y]/n", 8),
        ("/rules/[on=true]/id", "x"),
        ("/rules/[n=7]/id", "x"),
        ("/rules/[id={wanted}]/n", 8),
        ("/rules/[n={seven}]/id", "x"),
    ],
)
def test_a_path_leads_to_a_value(path: str, found: Any) -> None:
    """Keys, indexes and the one element that has a value.

    A filled-in slash does not split a step.
    """
    scope = {"wanted": "y", "seven": 7, "slashed": "a/b"}
    assert JsonPath.parse(path).get(DOCUMENT, scope) == found
    assert JsonPath.parse("/{slashed}/~0").get(DOCUMENT, scope) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/x",
        "/rules/4",
        "/rules/-1",
        "/rules/x",
        "/rules/[id=z]",
        "/rules/[on=1]",
        "/a~1b/~0/x",
        "/[id=x]",
        "/rules/[on=True]",
    ],
)
def test_a_path_to_nothing_says_so(path: str) -> None:
    """Missing keys, lists that are too short, no element or the wrong type.

    Each is NotThere, never another error.
    """
    with pytest.raises(NotThere):
        JsonPath.parse(path).get(DOCUMENT, {})


def test_two_elements_that_fit_are_none() -> None:
    """Which of them was meant cannot be known."""
    with pytest.raises(NotThere, match="2 elements"):
        JsonPath.parse("/[id=x]").get([{"id": "x"}, {"id": "x"}], {})


def test_an_edit_changes_a_copy() -> None:
    """What was read stays as it was; a new key may be added, a new element not."""
    edited = JsonPath.parse("/rules/[id=y]/n").replaced(DOCUMENT, 9, {})
    assert (edited["rules"][1]["n"], DOCUMENT["rules"][1]) == (9, {"id": "y", "on": False, "n": 8})  # type: ignore[index]
    assert JsonPath.parse("/new").replaced({}, 1, {}) == {"new": 1}
    for path in ("/rules/4", "/rules/[id=z]", "/x/y"):
        with pytest.raises(NotThere):
            JsonPath.parse(path).replaced(DOCUMENT, 9, {})


# --- templates ---


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_templates_are_whole(name: str) -> None:
    """Each is accepted with the values it asks for, refused with one it does not know.

    And needs a secret.
    """
    assert load_template(name, VALUES[name]).uses_secret
    with pytest.raises(ConfigInvalid, match=f"template {name}: values: it asks for no colour"):
        load_template(name, {**VALUES[name], "colour": "red"})
    if VALUES[name]:
        with pytest.raises(
            ConfigInvalid, match=f"template {name}: values: it needs {next(iter(VALUES[name]))}"
        ):
            load_template(name, {})


def test_decided_values_come_in_the_units_that_systems_want() -> None:
    """Percent, share, thousandths of a percent, each with what is left for control.

    Whole numbers without a point.
    """
    body = {
        name: f"{{{name}}}"
        for name in (
            "percent",
            "rest_percent",
            "share",
            "rest_share",
            "thousandths",
            "rest_thousandths",
        )
    }
    template = made(
        write={
            **SIMPLE["write"],
            "body": {**body, "on": "{enabled}", "{flag}": "{phase}/{revision}"},
        }
    )
    assert written(template, percent=33.33) == {
        "percent": 33.33, "rest_percent": 66.67, "share": 0.3333, "rest_share": 0.6667,
        "thousandths": 33330, "rest_thousandths": 66670, "on": True, "new-checkout": "baking/1",
    }  # fmt: skip
    whole = written(template, percent=100.0)
    assert [repr(whole[name]) for name in ("percent", "rest_percent", "share")] == ["100", "0", "1"]
    assert written(template, percent=0.0)["on"] is False


@given(st.integers(0, 10_000))
def test_weights_always_add_up(hundredths: int) -> None:
    """LaunchDarkly refuses weights that do not sum to 100,000."""
    template = made(
        write={
            **SIMPLE["write"],
            "body": ["{thousandths}", "{rest_thousandths}", "{percent}", "{rest_percent}"],
        }
    )
    weights = written(template, percent=hundredths / 100)
    assert weights[0] + weights[1] == 100_000
    assert weights[2] + weights[3] == pytest.approx(100)


def test_what_was_read_can_be_edited_and_sent_back() -> None:
    """A write may hold a list that was read with some values replaced.

    Which is all that some systems accept.
    """
    body = {
        "rules": {
            "$edit": "{rules}",
            "$set": {"/[id=mine]/share": "{share}", "/[id=mine]/on": "{enabled}"},
        }
    }
    template = parse_template(
        yaml.safe_dump(
            {
                "read": [
                    {**READ, "extract": {"rules": "/rules", "coverage": "/rules/[id=mine]/share"}}
                ],
                "percent": [{"is": "{coverage}", "of": 1}],
                "write": {**SIMPLE["write"], "body": body},
            }
        ),
        {},
    )
    answer = {"rules": [{"id": "theirs", "share": 1}, {"id": "mine", "share": 0.1, "seed": "s"}]}
    assert written(template, answer, percent=25.0) == {
        "rules": [
            {"id": "theirs", "share": 1},
            {"id": "mine", "share": 0.25, "seed": "s", "on": True},
        ]
    }
    with pytest.raises(FlagPlaneUnavailable, match="no element has id = mine"):
        written(template, {"rules": []})
    with pytest.raises(FlagPlaneUnavailable, match="the answer has no rules"):
        written(template, {})


def test_the_first_line_that_fits_says_the_percentage() -> None:
    """Lines whose names were not found are passed over.

    What is no number in range is no percentage.
    """
    template = made(
        read=[{"url": READ["url"], "extract": {"on": "/on", "weight": "/weight"}}],
        percent=[
            {"when": {"on": False}, "is": 0},
            {"is": "{weight}", "of": 1000},
            {"when": {"on": True}, "is": 100},
        ],
    )

    def percent(answer: Any) -> float | None:
        scope = template.scope(make_rollout(), None)
        template.extract(0, answer, scope)
        return template.percent(scope)

    answers: list[Any] = [
        {"on": False, "weight": 500}, {"on": True, "weight": 255}, {"on": True}, {}, [], None,
        {"on": 0, "weight": "250"}, {"weight": "much"}, {"weight": None}, {"weight": 1001},
        {"weight": -1}, {"weight": float("nan")}, {"on": "false"},
    ]  # fmt: skip
    assert [percent(answer) for answer in answers] == [
        0,
        25.5,
        100,
        None,
        None,
        None,
        25,
        *[None] * 6,
    ]


def test_what_is_filled_into_an_address_cannot_leave_its_place() -> None:
    """Slashes, question marks and dots of a value are escaped.

    Only the address that it begins with is taken as it is.
    """
    template = made(
        {"base": "https://flags.example.org/api", "project": "a/../b?x=1#y"},
        values={"base": None, "project": None},
        write={**SIMPLE["write"], "url": "{base}/p/{project}/{flag}"},
    )
    assert template.write_request(template.scope(make_rollout(), None)).url == (
        "https://flags.example.org/api/p/a%2F..%2Fb%3Fx%3D1%23y/new-checkout"
    )


WRONG: list[tuple[dict[str, Any], dict[str, str], str]] = [
    (
        {"write": {**SIMPLE["write"], "url": "https://flags.example.org/{colour}"}},
        {},
        "write.url: nothing fills {colour}",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "ftp://flags.example.org/"}},
        {},
        "write.url: begin with an address",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "https://{flag}.example.org/"}},
        {},
        "write.url: begin with an address",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "https://flags.example.org:{flag}/"}},
        {},
        "write.url: give a port that exists, and a slash",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "https://flags{flag}/"}},
        {},
        "write.url: give a port that exists, and a slash",
    ),
    ({"write": {**SIMPLE["write"], "url": "{flag}"}}, {}, "write.url: begin with an address"),
    (
        {"write": {**SIMPLE["write"], "url": "https://a:b@flags.example.org/"}},
        {},
        "without user and password",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "http://flags.example.org/"}},
        {},
        "http:// lets others read along",
    ),
    (
        {"write": {**SIMPLE["write"], "url": "https://flags.example.org/{secret}"}},
        {},
        "the secret stands in headers only",
    ),
    (
        {"write": {**SIMPLE["write"], "body": {"a": "{secret}"}}},
        {},
        "the secret stands in headers only",
    ),
    ({"write": {**SIMPLE["write"], "method": "GET"}}, {}, "write.method"),
    (
        {"write": {**SIMPLE["write"], "body": {"$edit": "{rules}"}}},
        {},
        "write.body: $edit and $set stand together",
    ),
    (
        {"write": {**SIMPLE["write"], "body": {"$edit": "rules", "$set": {}}}},
        {},
        "write.body: $edit: name a value that was read",
    ),
    ({"write": {**SIMPLE["write"], "body": {"a": "{"}}}, {}, "write.body: '{': write"),
    ({"write": {**SIMPLE["write"], "verb": "POST"}}, {}, "write.verb"),
    ({"headers": {"X-A": "{colour}"}}, {}, "headers.X-A: nothing fills {colour}"),
    ({"headers": {"X A": "b"}}, {}, "'X A' is no header to set"),
    ({"headers": {"Host": "evil"}}, {}, "'Host' is no header to set"),
    ({"headers": {"X-A": "a\r\nX-B: b"}}, {}, "X-A: ASCII on one line only"),
    ({"values": {"a": None}}, {"a": "x\r\ny"}, "values.a: ASCII on one line only"),
    ({"values": {"percent": None}}, {"percent": "50"}, "values.percent: the name is taken"),
    ({"values": {"secret": None}}, {"secret": "x"}, "values.secret: the name is taken"),
    ({"read": [READ]}, {}, "read.0.extract.share: the name is taken"),
    (
        {"read": [{"url": READ["url"], "extract": {"a": "rules"}}]},
        {},
        "read.0: 'rules' does not begin with a slash",
    ),
    ({"read": [{"url": READ["url"], "extract": {"a": "/rules/[id]"}}]}, {}, "write [name=value]"),
    ({"read": [{"url": READ["url"], "extract": {"a": "/a"}}]}, {}, "percent: say where"),
    ({"percent": [{"is": 0}]}, {}, "percent: nothing is read"),
    (
        {"read": [{"url": "https://x.example/{later}", "extract": {"later": "/a"}}]},
        {},
        "read.0.url: nothing fills {later}",
    ),
    (
        {
            "read": [{"url": READ["url"], "extract": {"a": "/a"}}],
            "percent": [{"is": "{a}"}],
            "headers": {"X-A": "{a}"},
        },
        {},
        "headers.X-A: nothing fills {a}",
    ),
    ({"refuse": [{"if_present": "x", "why": "y"}]}, {}, "refuse: nothing fills {x}"),
]


@pytest.mark.parametrize(("parts", "values", "why"), WRONG)
def test_a_template_that_cannot_work_is_refused_at_start(
    parts: dict[str, Any], values: dict[str, str], why: str
) -> None:
    """Each mistake is named with its place before anything is sent."""
    with pytest.raises(ValueError) as refused:
        made(values, **parts)
    assert why in str(refused.value)


@pytest.mark.parametrize("text", ["", "a: [", "7", "- a", "write: {}", "{" * 10_000, "a" * 100_001])
def test_a_file_that_is_no_template_is_refused(text: str) -> None:
    """Whatever stands in the file, it is refused with words."""
    with pytest.raises(ValueError):
        parse_template(text, {})


def test_a_template_that_is_nowhere_is_refused() -> None:
    """A mistyped name is told the names there are."""
    with pytest.raises(
        ConfigInvalid,
        match="neither one of flagsmith, growthbook, launchdarkly, webhook nor a readable file",
    ):
        load_template("launchdarkli", {})
