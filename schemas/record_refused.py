"""Why a record cannot be used: a reason, the problem, and how to fix it."""

from __future__ import annotations

from functools import cached_property
from typing import NoReturn

from schemas.terms import QuarantineReason

#: Characters of a refusal's detail that others wrote.
_MAX_QUOTED = 200


class RecordRefused(Exception):
    """A record that cannot be used. It goes to quarantine, and the next one is read.

    Made from a reason, the problem and how to fix it. What the problem quotes from the record is
    escaped and cut when the detail is first read. Refusing is therefore cheap, and the detail may
    be logged and shown as it is.
    """

    args: tuple[QuarantineReason, str, str]

    @cached_property
    def reason(self) -> QuarantineReason:
        """Why it was refused."""
        return self.args[0]

    @cached_property
    def detail(self) -> str:
        """What is wrong, where, and how to fix it: printable ASCII, bounded."""
        _, problem, fix = self.args
        return f"{ascii(problem[:_MAX_QUOTED])[1:-1][:_MAX_QUOTED]}; {fix}"

    def alone(self) -> RecordRefused:
        """Return the same without what it was raised from.

        A refusal that is kept would keep all frames and errors on its way, and the record itself;
        to make and free them costs more than to read a good record.
        """
        return RecordRefused(*self.args)

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def refuse(reason: QuarantineReason, problem: str, fix: str) -> NoReturn:
    """Raise RecordRefused."""
    raise RecordRefused(reason, problem, fix)
