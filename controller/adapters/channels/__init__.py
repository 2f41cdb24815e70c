"""The ways to reach people: each gives a message its own form, and says whether it was taken.

Belongs here: markup, limits and answers of one service. Does not belong here: who gets a message,
and when it is sent again (`controller/notifying/`).
"""
