"""What adapters that call over HTTP share: TLS, bounded answers, and when to call again."""
