"""Endpoints that monitoring systems call, each in its own format."""
