"""Apache Kafka: the event log, the state feed, topics, and what we publish."""
