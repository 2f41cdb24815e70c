"""People hear of what happens: which news goes where, who is told next, and until when.

`notifier.py` is the loop. Belongs here: routes, incidents, escalation, queues and words. Does not
belong here: how one channel takes a message (`adapters/channels/`), and alerts (`core/machine/`).
"""
