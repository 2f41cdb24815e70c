"""Tables of `rolloutctl notify list`.

Belongs here: what is shown, and in which columns. Does not belong here: asking for it
(`notify.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from schemas.notifications import NotificationsView


def tables_of(found: NotificationsView) -> Sequence[Table]:
    """Return what is shown of all of it."""
    from rich.table import Table

    from controller.cli.rendering import plain

    def table(*names: str) -> Table:
        made = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="dim")
        for name in names:
            made.add_column(name)
        return made

    channels = table("CHANNEL", "TYPE", "SENT", "WAITING", "STATE")
    for one in found.channels:
        state = f"fails: {one.trouble}" if one.trouble else "works" if one.sent else "not used yet"
        channels.add_row(
            plain(one.name), one.type, f"{one.sent:,}", f"{one.waiting:,}", plain(state)
        )
    columns = ("OPEN SINCE (UTC)", "KEY", "WHAT", "TOLD", "TAKEN BY", "NEXT (UTC)", "NEXT")
    incidents = table(*columns)
    incidents.columns[1].overflow = "fold"  # `notify ack` takes the whole key
    for incident in found.incidents:
        next_at = "" if incident.next_at is None else f"{incident.next_at:%H:%M:%S}"
        incidents.add_row(
            f"{incident.opened_at:%m-%d %H:%M:%S}",
            plain(incident.key),
            plain(incident.summary),
            plain(", ".join(incident.told) or "nobody: it is muted"),
            plain(incident.taken_by or "nobody"),
            next_at,
            plain(", ".join(incident.next_to)),
        )
    mutes = table("MUTED", "NUMBER OR NAME", "FROM (UTC)", "UNTIL (UTC)", "BY", "CRITICAL", "WHY")
    for one_mute in found.mutes:
        mutes.add_row(
            plain(one_mute.about),
            plain(one_mute.name),
            "now" if one_mute.start is None else f"{one_mute.start:%m-%d %H:%M}",
            f"{one_mute.until:%m-%d %H:%M}",
            plain(one_mute.by or "the rules file"),
            "muted" if one_mute.is_critical_too else "told",
            plain(one_mute.reason),
        )
    letters = table("NUMBER", "CHANNEL", "WHAT", "WHY IT WAS REFUSED")
    for letter in found.dead_letters:
        letters.add_row(
            str(letter.number), plain(letter.channel), plain(letter.summary), plain(letter.why)
        )
    shown = [channels]
    if found.incidents:
        shown.append(incidents)
    if found.mutes:
        shown.append(mutes)
    if found.dead_letters:
        shown.append(letters)
    return shown
