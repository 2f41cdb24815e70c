"""Words of an operator: filled in, or ours where they cannot be."""

from __future__ import annotations

import pytest

from controller.notifying.book import Delivery, Purpose
from controller.notifying.rules import Template
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
    assert told == [
        "the template of channel chat cannot be filled in: integer division or modulo by zero"
    ]


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
    assert made.text.startswith(long.summary.strip()[:1000])
    assert len(made.text) <= LONGEST_TEXT
    assert made.link == ""
