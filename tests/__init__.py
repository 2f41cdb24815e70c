"""rolloutd's tests; `tests.brokers` and the builders are imported by name from here."""
