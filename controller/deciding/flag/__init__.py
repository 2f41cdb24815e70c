"""Runs one flag: what reaches it, what it decides, what it saves, and what is published."""
