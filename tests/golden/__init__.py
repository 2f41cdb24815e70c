"""What releases have stored, kept for good: the present code must load it.

A directory for each release, such as `tests/golden/0.1.0`, has what a real daemon of that release
left in Redis and in Kafka, and what it answered. `make golden` writes that of this release;
`tests/e2e/test_golden_state.py` starts the present daemon on each.
"""
