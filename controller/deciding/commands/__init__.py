"""Follows the command topic: reads, refuses and forwards commands, or hands them to a flag."""
