"""Keeps the process running and says how it does: start, stop, health, watchdogs."""
