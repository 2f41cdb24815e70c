"""Counts events exactly once: from records of the event topics to totals per arm."""
