"""Shows what `rolloutctl events` found: lines about single events, and about all of a flag.

Belongs here: words and their order. Does not belong here: what is read (`event_tap.py`), and what
an event is (`controller/counting/event_classes.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from controller.cli import rendering
from controller.counting.flag_tally import EventSample, OutcomeReading
from controller.text import one_line, plural
from schemas.envelope import format_time, time_of
from schemas.terms import EventClass, EventRemark

#: Events shown of each class and remark, the newest ones.
_SHOWN: Final = 3
#: By class; those that are not here need a person. A later release's daemon may have others.
_STYLES: Final[dict[str, str]] = {
    EventClass.COUNTED: "green",
    EventClass.SETTLING: "dim",
    EventClass.CLOSED: "dim",
    EventClass.NEITHER_ARM: "dim",
}


def sample_line(sample: EventSample) -> Text:
    """Return one event as a line: what it is, how it was understood, where it is, and why."""
    found = sample.event_class
    arm = "" if sample.arm is None else f" ({sample.arm.value})"
    words = (
        f"{one_line(sample.flag_key) or '-'} {one_line(sample.variant) or '-'}{arm} "
        f"of {one_line(sample.context) or '-'}"
    )
    if not sample.flag_key and not sample.context:
        words = "cannot be read"
    understood = "" if sample.outcome is None else f"  {outcome_words(sample.outcome)}"
    unnamed = ", ".join(sample.uncounted_conversions)
    notes = [sample.why] if sample.why else []
    if unnamed:
        notes.append(f"no guardrail of the plan counts the conversion {unnamed}")
    return Text.assemble(
        (f"{format_time(time_of(sample.time_ms))}  ", "dim"),
        (f"{in_words(found.value):<16}", _STYLES.get(found, "bold yellow")),
        f"{sample.kind:<11} {words}",
        (
            one_line_indented(understood),
            "red" if sample.outcome is not None and sample.outcome.has_failed else "",
        ),
        (f"  {sample.topic}/{sample.partition} offset {sample.offset}", "dim"),
        f"  {one_line('; '.join(notes))}" if notes else "",
    )


def outcome_words(outcome: OutcomeReading) -> str:
    """Return how an outcome was understood, as in `failed (error.type 500), 183 ms`."""
    words = "failed" if outcome.has_failed else "ok"
    if outcome.has_failed and outcome.error_type is not None:
        words += f" (error.type {outcome.error_type})"
    elif outcome.status_code is not None:
        words += f" (status {outcome.status_code})"
    words += ", no duration" if outcome.latency_ms is None else f", {_ms(outcome.latency_ms)}"
    if outcome.conversions:
        words += f", converted {', '.join(outcome.conversions)}"
    if outcome.is_joined:
        words += ", joined by context"
    return words


def _ms(latency_ms: float) -> str:
    return f"{latency_ms:,.0f} ms" if latency_ms >= 10 else f"{latency_ms:.3g} ms"


def show_flag_events(console: Console, document: Mapping[str, Any], read: str) -> None:
    """Show what the events of one flag were: each class with its samples and what to do."""
    flag = one_line(str(document["flag"]))
    rendering.show_line(console, Text.assemble((flag, "bold"), f"  {read}"))
    if not document["has_rollout"]:
        near = document["nearest"]
        meant = f"; did you mean {one_line(near)}?" if near else ""
        words = f"no rollout has this flag; events that name it: {document['events']:,}{meant}"
        rendering.show_line(console, Text(words, "yellow"))
    elif not document["events"]:
        rendering.show_line(console, Text("no event names this flag", "yellow"))
    for name, found in document["classes"].items():
        _show_class(console, name, found)
        if name == EventClass.UNKNOWN_VARIANT:
            variants = document["unknown_variants"].items()
            named = ", ".join(f"{one_line(each)} ({count:,})" for each, count in variants)
            rendering.show_line(console, Text(f"    named: {named}"))
    for name, found in document["remarks"].items():
        _show_remark(console, name, found)
    _show_unread(console, document)
    _show_unattributed(console, document.get("unattributed", {}))


def _show_unattributed(console: Console, others: Mapping[str, Any]) -> None:
    """Show what the events were that name no flag with a rollout."""
    if not others.get("classes"):
        return
    rendering.show_line(console, Text("events that name no flag with a rollout:", "dim"))
    for name, found in others["classes"].items():
        _show_class(console, name, found)
    if misnamed := others.get("remarks", {}).get(EventRemark.MISNAMED_FIELD):
        # Their class may have shown the same events, with the same question.
        shown = [one for each in others["classes"].values() for one in each["samples"][-_SHOWN:]]
        new = [one for one in misnamed["samples"] if _place(one) not in map(_place, shown)]
        _show_remark(console, EventRemark.MISNAMED_FIELD, {**misnamed, "samples": new})
    _show_unread(console, others)


def _show_unread(console: Console, document: Mapping[str, Any]) -> None:
    if unread := document.get("unread_fields"):
        named = ", ".join(f"{one_line(each)} ({count:,})" for each, count in unread.items())
        rendering.show_line(console, Text(f"fields that nothing reads: {named}", "dim"))


def _show_class(console: Console, name: str, found: Mapping[str, Any]) -> None:
    numbers = f"{found['evaluations']:>9,} evaluations {found['outcomes']:>9,} outcomes"
    style = _STYLES.get(name, "bold yellow")
    rendering.show_line(console, Text.assemble((f"{in_words(name):<16}", style), numbers))
    if name != EventClass.COUNTED:
        _show_samples(console, found)


def _show_remark(console: Console, name: str, found: Mapping[str, Any]) -> None:
    count = found["events"]
    words = f"{count:>9,} event{'s' * (count != 1)}"
    line = Text.assemble((f"{in_words(name):<16}", "bold yellow"), words)
    rendering.show_line(console, line)
    _show_samples(console, found)


def _show_samples(console: Console, found: Mapping[str, Any]) -> None:
    hint = one_line(str(found["hint"]))
    to_do = hint if hint.startswith("nothing to do") else f"to do: {hint}"
    rendering.show_line(console, Text(f"    {to_do}"))
    for sample in found["samples"][-_SHOWN:]:
        words = (
            f"    {_place(sample)}  {sample['time']}  {sample['variant']} of "
            f"{sample['context'] or '-'}: {sample['why']}"
        )
        rendering.show_line(console, Text(one_line_indented(words), "dim"))


def _place(sample: Mapping[str, Any]) -> str:
    return f"{sample['topic']}/{sample['partition']} offset {sample['offset']}"


def one_line_indented(words: str) -> str:
    """Return words of others on one line that begins as they do."""
    return " " * (len(words) - len(words.lstrip(" "))) + one_line(words)


def show_summary(console: Console, summary: Mapping[str, Any], read: str) -> None:
    """Show what the events of each flag were, a line each, and which flags have no rollout."""
    rendering.show_line(console, Text(read, "dim"))
    for flag, classes in summary["flags"].items():
        words = ", ".join(f"{count:,} {in_words(name)}" for name, count in classes.items())
        rendering.show_line(console, Text.assemble((f"{one_line(flag)}  ", "bold"), words))
        if misnamed := summary.get("misnamed_fields", {}).get(flag):
            count = misnamed["events"]
            words = (
                f"    misnamed field in {count:,} event{'s' * (count != 1)}: {misnamed['newest']}"
            )
            rendering.show_line(console, Text(one_line_indented(words), "bold yellow"))
    if summary.get("omitted_flags"):
        rendering.show_line(
            console, Text(f"and {plural(summary['omitted_flags'], 'more flag')}", "dim")
        )
    for flag, found in summary["unknown_flags"].items():
        near = found.get("nearest")
        meant = f"; did you mean {one_line(near)}?" if near else ""
        count = found["events"]
        words = f"no rollout, {count:,} event{'s' * (count != 1)}{meant}"
        rendering.show_line(console, Text.assemble((f"{one_line(flag)}  ", "yellow"), words))
    _show_unattributed(console, summary["unattributed"])


def in_words(name: str) -> str:
    """Return the name of a class or remark as people read it."""
    return one_line(name.replace("_", " "))
