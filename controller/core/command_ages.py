"""How old a command may be when it is carried out, and how far clocks may differ."""

from __future__ import annotations

from datetime import timedelta

#: Commands that raise the percentage, or open the way to it, are refused when they are older than
#: this: a command from before an outage says nothing of the state after it.
COMMAND_MAX_AGE = timedelta(minutes=10)

#: All other commands only ever make the rollout more careful, so an outage of hours does not make
#: them void. One that is more than a day old was read again, from a log whose offsets were lost or
#: mirrored, and nobody remembers it.
LOWERING_MAX_AGE = timedelta(hours=24)

#: A command that was issued before the present rollout began belongs to an earlier one. Clocks of
#: laptops differ by seconds to minutes; a slower clock than this is believed only for a command
#: that was sent just now, see `is_backlog`.
CLOCK_TOLERANCE = timedelta(minutes=5)
