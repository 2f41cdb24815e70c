"""Forwards alerts from Kafka to chat and pager services."""
