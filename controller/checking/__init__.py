"""Objectives are checked on a schedule: what is missed becomes a signal.

A check asks a monitoring system for one number. While its objective is missed it fires, as a
monitor's webhook would, and the rules of signals say what follows: so one place lowers flags.

Belongs here: when a check fires and when it is over. Does not belong here: how a system is asked
(`adapters/measuring/`), and what is done to flags (`responding/`).
"""
