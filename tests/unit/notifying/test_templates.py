"""Words of an operator: filled in, or ours where they cannot be."""

from __future__ import annotations

import pytest

from controller.notifying.book import Delivery, Purpose
from controller.notifying.rules import Template
from controller.notifying.sandbox import filled
from controller.notifying.templates import EXAMPLE, fault_of, in_own_words
from controller.notifying.words import LONGEST_TEXT, Message, plain_message
from tests.builders import T0
from tests.unit.notifying.news_of import news

PAGE = "https://rollouts.example.com"


def message(*templates: Template, purpose: Purpose = Purpose.NEWS) -> tuple[Message, list[str]]:
    """Return the message to the chat, and what was reported."""
    told: list[str] = []
    delivery = Delivery(1, "chat", news(), purpose, T0)
    made = plain_message(delivery, "production", PAGE)
    return in_own_words(made, delivery, templates, told.append), told


def template(title: str | None = None, text: str | None = None) -> Template:
    """Return a template for the chat."""
    return Template.model_validate({"channels": "chat", "title": title, "text": text})


def test_a_template_is_filled_in() -> None:
    """With what the news says."""
    made, told = message(template("{{ flag|upper }} at {{ percent }}", "{{ owner }}: {{ action }}"))
    assert (made.title, made.text) == ("CHECKOUT at 0.0", "payments: look at the errors")
    assert told == []


def test_a_template_for_another_channel_is_not_used() -> None:
    """Ours stay."""
    other = Template.model_validate({"channels": "pager", "title": "x"})
    assert message(other)[0].title == "checkout is at 0 %: too many errors"


def test_a_template_that_fails_costs_no_alert() -> None:
    """Our own words are sent, and the fault is told."""
    made, told = message(template("{{ 1 // (percent|int) }}"))
    assert made.title == "checkout is at 0 %: too many errors"
    why = "line 1: integer division or modulo by zero"
    assert told == [f"the template of channel chat cannot be filled in: {why}"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{% for a in range(100000000) %}x{% endfor %}",
        "{{ flag.__class__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ 'x'.format.__globals__ }}",
    ],
)
def test_what_a_template_must_not_do_is_refused(source: str) -> None:
    """No memory, no time, no way out of the sandbox."""
    assert fault_of(source) is not None


GROWING = "{{% set a = 'xxxxxxxxxx' %}}" + "{growth}" * 60
HOSTILE = [
    ("{% for a in range(1000) %}" * 4 + "x" + "{% endfor %}" * 4, "too much work"),
    ("{% for a in range(400) %}{% set b = range(1000)|sort|list %}{% endfor %}", "too much work"),
    (
        "{% for a in text %}{% for b in text %}{% set c = a in text %}{% endfor %}{% endfor %}"
        * 50,
        "too much work",
    ),
    ("{% for a in range(900) %}{{ text }}{% endfor %}", "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = a ~ a %}"), "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = a + a %}"), "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = a|replace('x', a) %}"), "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = [a, a]|join %}"), "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = '%s%s' % (a, a) %}"), "more than 10,000 characters"),
    (GROWING.format(growth="{% set a = a|urlencode %}{% set a = a ~ '%' ~ a %}"), "10,000"),
    (GROWING.format(growth="{% set a %}{{ a }}{{ a }}{% endset %}"), "`assignblock` is not"),
    ("{% set a = 'x' %}" + "{% set a = [a, a] %}" * 60 + "{{ a }}", "only text and numbers"),
    ("{% set a = 99999999 %}" + "{% set a = a * a %}" * 60, "a number of this size"),
    ("{{ 9999999999|int }}" + "{{ 1|round(1000000000, 'ceil') }}", "10 digits at most"),
    ("{{ 'x'|center(1000000000) }}", "there is no filter `center` here; there are abs, "),
    ("{{ 'x'.ljust(1000000000) }}", "'ljust' of 'str' object is unsafe"),
    ("{{ '{:1000000000}'.format(1) }}", "'format' of 'str' object is unsafe"),
    ("{{ '%1000000000d' % 1 }}", "a width or precision"),
    ("{{ '%*d'|format(1000000000, 1) }}", "a width or precision"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "`macro` is not possible here"),
    ("{% for a in text recursive %}{{ loop(a) }}{% endfor %}", "`for` is not possible here"),
    ("{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}", "recursion"),
    ("{{ " + "not " * 2_400 + "1 }}", "recursion"),
    ("{{ flag|attr('__class__') }}", "there is no filter `attr` here"),
    ("{{ flag['__class__'] }}", "unsafe"),
    ("{{ '%s' % text.__class__ }}", "unsafe"),
    ("{{ range.__globals__ }}", "unsafe"),
    ("{{ self }}", "only text and numbers"),
    ("{% if x %}{% import 'x' as y %}{% endif %}", "`import` is not possible here"),
]


@pytest.mark.parametrize(("source", "fault"), HOSTILE, ids=[one[1] for one in HOSTILE])
def test_a_hostile_template_ends_with_a_reason(source: str, fault: str) -> None:
    """However it tries to loop, to grow, or to get at what it was not given."""
    assert fault in (fault_of(source) or "")


def test_a_branch_that_is_rarely_taken_is_tried_as_well() -> None:
    """Each purpose and severity, and values that may be empty; the line is told."""
    fault = fault_of("{{ flag }}\n{% if purpose == 'over' and not owner %}\n{{ ownr }}{% endif %}")
    assert fault is not None
    assert fault.startswith("cannot be filled in: line 3: 'ownr' is undefined; it may use action,")


def test_a_branch_for_one_kind_of_news_is_tried_as_well() -> None:
    """Most templates say something else of an approval than of a rollback."""
    fault = fault_of("{% if kind == 'approval_needed' %}{{ approver }}{% endif %}")
    assert "'approver' is undefined" in (fault or "")


def test_a_failure_that_nobody_foresaw_costs_no_alert() -> None:
    """One that the examples do not show."""
    made, told = message(template("{{ text|replace('o', text * percent|int) }}"))
    assert made.title == "checkout is at 0 %: too many errors"
    assert len(told) == 1


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ '%.1f' % failed }} {{ '%s/%s' % (flag, owner) }}", "49.0 new-checkout/payments"),
        ("{{ 'at ' ~ percent ~ ' %' }}", "at 0.0 %"),
        ("{{ 'look' if severity in ('critical', 'warning') else 'relax' }}", "look"),
        (
            "{% for w in flag.split('-') %}{{ w }}{{ ',' if not loop.last else '' }}{% endfor %}",
            "new,checkout",
        ),
        ("{{ (failed / exposed * 100)|round(1) }} %", "4.1 %"),
        ("{{ summary|truncate(20) }}|{{ stage[:2] }}|{{ owner|upper }}", None),
        ("{{ text.split()|first }} {{ ['b', 'a']|sort|join('+') }}", "What a+b"),
        ("{% set who = owner or 'nobody' %}{{ who|default('x') }}", "payments"),
        ("{{ text|replace('look', 'see')|length }}", "47"),
    ],
)
def test_what_templates_usually_do_is_possible(source: str, shown: str | None) -> None:
    """Conditions, loops, numbers with so many digits, parts of a text."""
    assert fault_of(source) is None
    assert shown in (None, filled(source, EXAMPLE))


def test_every_example_is_there_when_a_template_is_filled_in() -> None:
    """Else a template that was checked would fail when it is needed."""
    everything = " ".join(f"{{{{ {name} }}}}" for name in EXAMPLE)
    made, told = message(template(text=everything))
    assert told == []
    assert "look at the errors" in made.text


def test_our_own_words_say_what_happened_and_what_to_do() -> None:
    """Title, action, facts and a link to the rollout."""
    made, _ = message()
    assert made.title == "checkout is at 0 %: too many errors"
    assert made.text == "What to do: look at the errors"
    assert dict(made.facts)["Served"] == "0 %, rolled back, stage 10%"
    assert made.link == f"{PAGE}/ui/rollouts/checkout"
    assert message(purpose=Purpose.REPEAT)[0].title.startswith("Still open: checkout")
    assert message(purpose=Purpose.OVER)[0].text == ""


def test_long_words_are_cut_and_nothing_is_lost_of_the_summary() -> None:
    """A title of one line, the whole in the text."""
    long = news(summary="word " * 300, action="")
    made = plain_message(Delivery(1, "chat", long, Purpose.NEWS, T0), "production", None)
    assert len(made.title) == 200
    assert made.title.endswith(" …")  # that it goes on is seen
    assert made.text.startswith(long.summary.strip()[:1000])
    assert len(made.text) <= LONGEST_TEXT
    assert made.link == ""
