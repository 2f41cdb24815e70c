"""The plan that a rollout runs, and a form in which a plan is checked: lint, and nothing else.

A pasted plan is read in a thread, one at a time, and bounded in size. No file is opened, and what
was pasted is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qs

import yaml

from controller.codec.plans import from_core_plan
from controller.core.plan import Plan
from controller.plans import lint_text
from controller.web.page.rendering import Renderer, Section

#: Characters of a plan that is checked here; one of 100 stages has 10,000. `rolloutctl plan lint`
#: takes more.
LONGEST_PLAN: Final = 20_000
#: Bytes of the form: each character may be written as `%XX` for each of its bytes.
LONGEST_FORM: Final = 12 * LONGEST_PLAN
FINDINGS: Final = 50
_WAIT_SECONDS: Final = 5.0


class Busy(Exception):
    """Another plan is being checked, and takes long."""


class PlanScreen:
    """Shows a plan, and checks one that is pasted."""

    def __init__(self, renderer: Renderer, now: Callable[[], datetime]) -> None:
        self._renderer = renderer
        self._now = now
        self._one_at_a_time = asyncio.Semaphore(1)

    async def sections(self, plan: Plan) -> list[Section]:
        """Return the plan as text; written in a thread, because a large one takes long."""
        text = await asyncio.to_thread(_as_yaml, plan)
        values = {"flag": plan.flag_key, "version": plan.version, "text": text}
        return self._renderer.blocks("plan.html", values)

    def empty_form(self) -> list[Section]:
        """Return the form without a plan."""
        return self._filled("", [], None, is_checked=False)

    async def checked(self, body: bytes) -> list[Section]:
        """Return the form with what lint finds. Raises Busy while another check takes too long."""
        text = pasted(body)
        if len(text) > LONGEST_PLAN:
            return self._refused(
                f"The plan has {len(text):,} characters; here {LONGEST_PLAN:,} are read. "
                f"`rolloutctl plan lint plan.yaml` reads larger ones."
            )
        if not text.strip():
            return self._refused("Nothing was pasted.")
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                await self._one_at_a_time.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            # Not awaited by the request alone: a thread goes on when its client has left.
            task = asyncio.ensure_future(asyncio.to_thread(lint_text, text, self._now()))
            task.add_done_callback(lambda _: self._one_at_a_time.release())
        except BaseException:
            self._one_at_a_time.release()
            raise
        document, found = await asyncio.shield(task)
        findings = [
            {"is_error": one.is_error, "line": one.line, "words": str(one)}
            for one in found[:FINDINGS]
        ]
        flag = None if document is None else document.flag
        return self._filled(text, findings, flag, is_checked=True)

    def _refused(self, why: str) -> list[Section]:
        values = {"result": "Not checked", "mark": "?", "tone": "unknown", "why": why}
        return self._form(values, "", [], [])

    def _filled(
        self, text: str, findings: list[dict[str, Any]], flag: str | None, *, is_checked: bool
    ) -> list[Section]:
        errors = sum(bool(one["is_error"]) for one in findings)
        warnings = len(findings) - errors
        words = ", ".join(
            f"{count} {name}{'s' if count > 1 else ''}"
            for count, name in ((errors, "error"), (warnings, "warning"))
            if count
        )
        if not is_checked:
            values = {"result": "Check a plan", "mark": "", "tone": "", "why": ""}
        elif errors:
            values = {"result": f"It cannot be started: {words}.", "mark": "▲", "tone": "harm"}
        elif warnings:
            values = {"result": f"It works, with {words}.", "mark": "◆", "tone": "waits"}
        else:
            values = {"result": "No fault found.", "mark": "✓", "tone": "done"}
        marked = {one["line"] for one in findings}
        lines = (
            [
                {"text": line, "marked": number in marked}
                for number, line in enumerate(text.splitlines(), start=1)
            ]
            if findings
            else []
        )
        command = "rolloutctl start plan.yaml" if is_checked and flag and not errors else ""
        return self._form({"why": "", **values}, text, findings, lines, command)

    def _form(
        self,
        values: dict[str, str],
        text: str,
        findings: list[dict[str, Any]],
        lines: list[dict[str, Any]],
        command: str = "",
    ) -> list[Section]:
        return self._renderer.blocks(
            "lint.html",
            {
                **values,
                "text": text,
                "findings": findings,
                "lines": lines,
                "command": command,
                "longest": LONGEST_PLAN,
            },
        )


def pasted(body: bytes) -> str:
    """Return the plan in a form's body; empty for a body that is no form."""
    fields = parse_qs(body.decode("latin-1"), keep_blank_values=True, max_num_fields=10)
    return fields.get("plan", [""])[-1].replace("\r\n", "\n")


def _as_yaml(plan: Plan) -> str:
    document = from_core_plan(plan).model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=90)
