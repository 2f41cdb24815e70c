"""Tries plans: the real state machine and tests in virtual time, on drawn or recorded events."""
