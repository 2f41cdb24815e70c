"""Shared by adapters that call over HTTP: TLS, bounded answers, and when to call again."""
