"""Unleash as a flag plane."""
