"""Brings what Prefect knows of its runs to rolloutd: evaluations and outcomes, exactly once.

Copy this package. It needs httpx and confluent-kafka; nothing of rolloutd, nothing of Prefect.
"""
