"""Decides: pure, no clock, no I/O. Begin with `machine/`."""
