"""Adds alerts for people that no rollout waits for: explanations, and anomalies."""
